"""Remove from a model what its user never asks for, before channels are pruned; the rest is computed as before."""
