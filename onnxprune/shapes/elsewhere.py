"""A model's shapes and values at other sizes of its symbolic dimensions: what is an accident of the sizes shows."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.errors import OnnxPruneError
from onnxprune.shapes.result import Shapes, concretise


def elsewhere(proto: ModelProto, shapes: Shapes) -> Shapes | None:
    """Concretise at sizes that all differ from those given; None if no others are found that fit.

    Args:
        proto: the model.
        shapes: what is known of it at the sizes it was traced at.
    """
    for times, plus in ((1, 1), (2, 0)):
        inputs = {}
        for entry in proto.graph.input:
            dims = entry.type.tensor_type.shape.dim
            sizes = shapes.inputs.get(entry.name, ())
            inputs[entry.name] = [
                n if d.HasField("dim_value") and d.dim_value > 0 else times * n + plus
                for n, d in zip(sizes, dims, strict=False)
            ]
        try:
            return concretise(proto, inputs)
        except OnnxPruneError:
            continue
    return None
