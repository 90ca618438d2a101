"""Gradients of operators, a file per family."""
