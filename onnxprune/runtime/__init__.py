"""The installed ONNX Runtime: its library, its execution providers, and what may be wrong with them."""
