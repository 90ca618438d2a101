"""Deep Compression: weights that share values, and files in fewer bytes, from which the same bytes come back."""
