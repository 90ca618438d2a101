"""INT8, INT4 and float16 forms of a model, by ONNX Runtime's quantizers, chosen by measured error and time."""
