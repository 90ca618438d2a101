"""Weights set to zero, one by one or in patterns, where that pays: the size of downloads, and some runtimes."""
