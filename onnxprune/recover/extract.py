"""Cutting a model down to what some of its tensors need."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, ValueInfoProto

from onnxprune._validate import captured_names
from onnxprune._wire import copy_without


def extract(model: ModelProto, outputs: Iterable[str]) -> ModelProto:
    """Return the part of a model that computes some of its tensors.

    Args:
        model: a model in topological order.
        outputs: names of tensors; they become the part's outputs, in this order.
    """
    wanted = list(dict.fromkeys(outputs))
    needed = set(wanted)
    nodes = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input, captured_names(node))
    part = copy_without(model, "graph")
    part.graph.CopyFrom(copy_without(model.graph, "node", "initializer", "input", "output", "value_info"))
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.input.extend(i for i in model.graph.input if i.name in needed)
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return part
