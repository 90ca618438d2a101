"""Weights that a single node reads, perhaps dequantised: what leaves them is that node's affair alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import GraphProto, NodeProto

_ELEMENTWISE = frozenset({"Cast", "DequantizeLinear", "Identity"})


def owned_weights(graph: GraphProto, uses: Mapping[str, int]) -> dict[str, str]:
    """Return the tensors that hold an initialiser's elements, unmoved, and have one reader, with the initialiser.

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
