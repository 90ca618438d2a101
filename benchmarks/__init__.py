"""Benchmarks behind the README's figures: each module prints tables and writes them, with the figures, to docs/.

Run them from the repository's root, on a quiet machine: ``python -m benchmarks.tracing``.
"""
