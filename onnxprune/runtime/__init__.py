"""The installed ONNX Runtime: its library, its execution providers, and their diagnosis."""
