"""ONNX models as such: load, check, save, run and index them, extract a part, and build a graph."""
