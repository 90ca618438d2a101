"""Versions, where everything may read them."""

__version__ = "0.1.0"

REPORTS = 1  # of JSON documents
