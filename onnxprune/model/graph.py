"""Who reads which tensor, bodies included, and what is needed for some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

from onnxprune.model.checks import captured_names
from onnxprune.model.wire import copy_without


def reads(node: NodeProto) -> Iterator[str]:
    """Go through the tensors that a node reads, as often as it does, and then what its subgraphs capture."""
    yield from filter(None, node.input)
    yield from captured_names(node)


def count_uses(graph: GraphProto) -> Counter[str]:
    """Count how often each tensor is read: by nodes, and by whoever runs the model."""
    uses = Counter(name for node in graph.node for name in reads(node))
    uses.update(output.name for output in graph.output)
    return uses


def behind(tensors: Iterable[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes that tensors are computed by, of all nodes in order, in this order."""
    needed = set(tensors)
    found = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            found.append(node)
    return found[::-1]


def unique(name: str, taken: set[str]) -> str:
    """Give a name, numbered if it is taken, and take it."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


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


_ELEMENTWISE = frozenset({"Cast", "DequantizeLinear", "Identity"})


def owned_weights(graph: GraphProto, uses: Mapping[str, int]) -> dict[str, str]:
    """Return the tensors that hold an initializer's elements, unmoved, and have one reader, with the initializer.

    Args:
        graph: the graph.
        uses: how often each tensor is read (`count_uses`).
    """
    sizes = {t.name: prod(t.dims) for t in graph.initializer}
    owned = {name: name for name in sizes if uses.get(name) == 1}
    for node in graph.node:
        if node.op_type not in _ELEMENTWISE or not node.input or not node.output:
            continue
        if node.input[0] in owned and uses.get(node.output[0]) == 1 and not _by_second_axis(node, sizes):
            owned[node.output[0]] = owned[node.input[0]]
    return owned


def _by_second_axis(node: NodeProto, sizes: dict[str, int]) -> bool:
    """Whether a node has a scale for each position, or each block, of an axis other than the first."""
    attributes = {a.name: a.i for a in node.attribute}
    return any(sizes.get(n, 2) > 1 for n in node.input[1:] if n) and attributes.get("axis", 1) != 0
