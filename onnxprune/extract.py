"""Cutting a model down to what some of its tensors need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

from onnxprune._uses import reads
from onnxprune._wire import copy_without


def extract(model: ModelProto, outputs: Iterable[str], given: Mapping[str, NDArray[Any]] | None = None) -> ModelProto:
    """Return the part of a model that computes some of its tensors.

    Args:
        model: a model in topological order.
        outputs: names of tensors; they become the part's outputs, in this order.
        given: examples of tensors that the part gets as inputs; the model's own inputs by default.
    """
    given = given or {}
    wanted = list(dict.fromkeys(outputs))
    needed = set(wanted)
    nodes = []
    for node in reversed(model.graph.node):
        if any(name in needed and name not in given for name in node.output):
            nodes.append(node)
            needed.update(reads(node))
    part = copy_without(model, "graph")
    part.graph.CopyFrom(copy_without(model.graph, "node", "initializer", "input", "output", "value_info"))
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    own = [i for i in model.graph.input if i.name in needed and i.name not in given]
    part.graph.input.extend(own)
    part.graph.input.extend(
        make_tensor_value_info(name, np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in given.items()
        if name in needed
    )
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return part
