"""Versions, where everything may read them."""

__version__ = "0.2.0"

REPORTS = 3  # of JSON documents
