"""How much a model's own outputs move when its inputs change by a hair: a measure for errors that nobody notices."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.model.stream import Inputs

_NOISE = 0.01  # of the standard deviation of an input that is no image
_CHANNELS = (1, 3, 4)
_REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def disturbed(model: ModelProto, example: Inputs, seed: int = 0) -> ModelProto | None:
    """Return a model that disturbs its inputs a little before it computes; None if no input can be disturbed.

    Images move to the left by one pixel, the last column is repeated. Other real inputs get normal noise of 1% of their
    standard deviation. Integers, such as token ids, stay.

    Args:
        model: a model of opset 13 or later.
        example: some inputs, which show what is an image and how large values are.
        seed: random seed of the noise.

    Examples:
        >>> import numpy as np
        >>> from onnxprune.model.file import load
        >>> model = load("models/digits_resnet.onnx").proto
        >>> moved = disturbed(model, {"image": np.zeros((1, 1, 8, 8), np.float32)})
        >>> [node.op_type for node in moved.graph.node][:3]
        ['Slice', 'Slice', 'Concat']
    """
    found = ModelProto()
    found.CopyFrom(model)
    graph, nodes = found.graph, []
    given = {tensor.name for tensor in graph.initializer}
    for number, entry in enumerate(value for value in graph.input if value.name not in given):
        kind, array = entry.type.tensor_type.elem_type, example[entry.name]
        axis, moved = _width(array), f"{entry.name}/disturbed"
        if axis is None and (kind not in _REAL or not array.size):
            continue
        if axis is not None:
            for name, value in (("one", 1), ("last", -1), ("end", np.iinfo(np.int64).max), ("axis", axis)):
                tensor = numpy_helper.from_array(np.array([value], np.int64), f"{moved}/{name}")
                graph.initializer.append(tensor)
            one, last, end, along = (f"{moved}/{name}" for name in ("one", "last", "end", "axis"))
            nodes += [
                helper.make_node("Slice", [entry.name, one, end, along], [f"{moved}/rest"], name=f"{moved}/rest"),
                helper.make_node("Slice", [entry.name, last, end, along], [f"{moved}/border"], name=f"{moved}/border"),
                helper.make_node("Concat", [f"{moved}/rest", f"{moved}/border"], [moved], name=moved, axis=axis),
            ]
        else:
            scale = _NOISE * float(np.std(array.astype(np.float64)))
            if not scale > 0:
                continue
            noise = f"{moved}/noise"
            nodes += [
                helper.make_node(
                    "RandomNormalLike", [entry.name], [noise], name=noise, scale=scale, seed=float(seed + number)
                ),
                helper.make_node("Add", [entry.name, noise], [moved], name=moved),
            ]
        for node in graph.node:
            node.input[:] = [moved if name == entry.name else name for name in node.input]
    if not nodes:
        return None
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return found


def _width(array: np.ndarray) -> int | None:
    """Return the axis of an image's width; None if an array is no batch of images."""
    if array.ndim != 4 or min(array.shape) < 1:
        return None
    if array.shape[1] in _CHANNELS and array.shape[3] > 4:
        return 3
    return 2 if array.shape[3] in _CHANNELS and array.shape[2] > 4 else None
