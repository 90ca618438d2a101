"""Optimizers of graphs, run by name in a process of their own; what they make is checked by whoever uses it."""
