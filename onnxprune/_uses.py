"""Who reads which tensor, bodies included, and what is needed for some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from onnx import GraphProto, NodeProto

from onnxprune._validate import captured_names


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
