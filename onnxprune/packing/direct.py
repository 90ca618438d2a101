"""Clusters in standard operators: a model of indices and codebooks that ONNX Runtime loads as it is.

ONNX Runtime computes what depends on initializers alone when it opens a model. The weights are whole again in memory,
and running the model takes as long as before.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.model.checks import captured_names
from onnxprune.model.graph import opset_of
from onnxprune.model.tensors import Weights
from onnxprune.packing.clusters import SMALLEST, shared

_FOUR_BITS, _IR = 21, 10  # the opset whose Cast reads UINT4, and its IR version
_INDEX = 256  # values that an index of 8 bits tells apart


def with_codebooks(model: ModelProto) -> ModelProto:
    """Return a model with indices and a codebook in place of each weight of few different values.

    Indices have 4 bits if the model's opset is 21 or later and 16 values are enough, else 8. The values are the same,
    bit for bit. Zero, where it is one of them, has the index 0.

    Args:
        model: a model that `onnxprune.packing.clusters.cluster` changed.
    """
    found = ModelProto()
    found.CopyFrom(model)
    stored, opset = Weights(model), opset_of(model)
    taken = {n for node in model.graph.node for n in (*node.input, *node.output, *captured_names(node))} | {*stored}
    nodes = []
    for name in dict.fromkeys(shared(model)):
        array = stored[name]
        values, index = np.unique(array, return_inverse=True)
        if len(values) > _INDEX or len(values) * 4 > array.size or array.size < SMALLEST:
            continue
        order = np.argsort(values != 0, kind="stable")
        values, index = values[order], np.argsort(order)[index].reshape(array.shape)
        few = opset >= _FOUR_BITS and len(values) <= 16
        small = index.astype(ml_dtypes.uint4 if few else np.uint8)
        own = {part: _free(f"{name}/{part}", taken) for part in ("values", "index", "position")}
        position = next(i for i, tensor in enumerate(found.graph.initializer) if tensor.name == name)
        del found.graph.initializer[position]
        found.graph.initializer.append(numpy_helper.from_array(values, own["values"]))
        found.graph.initializer.append(numpy_helper.from_array(small, own["index"]))
        cast = helper.make_node("Cast", [own["index"]], [own["position"]], own["position"], to=TensorProto.INT32)
        nodes += [cast, helper.make_node("Gather", [own["values"], own["position"]], [name], _free(name, taken))]
        found.ir_version = max(found.ir_version, _IR) if few else found.ir_version
    rest = list(found.graph.node)
    del found.graph.node[:]
    found.graph.node.extend([*nodes, *rest])
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
