"""Costs of a model: parameters, multiply-accumulates, bytes and activation memory, also before it is rewritten."""
