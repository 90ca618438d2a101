"""ONNX models as such: loading, checking, saving, running, extracting a part, and building a graph."""
