"""Operators, a file per family; `onnxprune.operators.card` says what is known of each."""
