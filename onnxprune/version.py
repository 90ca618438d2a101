"""Versions, where everything may read them."""

__version__ = "0.2.0"

REPORTS = 2  # of JSON documents
