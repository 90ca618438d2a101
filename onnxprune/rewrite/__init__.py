"""Carrying a plan out, and proving the result against the masked original."""
