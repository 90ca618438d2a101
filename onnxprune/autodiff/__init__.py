"""Gradients: the forward pass of a model as a graph under construction, and reverse-mode differentiation of it."""
