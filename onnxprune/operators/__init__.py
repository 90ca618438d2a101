"""Operators, a file per family. Each module registers its own on import; see `onnxprune.operators.registry`."""
