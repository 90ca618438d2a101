"""Versions, where everything may read them."""

__version__ = "0.1.0"

REPORTS = 2  # of JSON documents
