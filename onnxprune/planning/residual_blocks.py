"""Finds the residual blocks of a graph: sums of a tensor and something computed from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from onnxprune.errors import PlanError
from onnxprune.model.graph import GraphIndex, behind, fixed_names, reads, with_inputs, with_nodes
from onnxprune.operators.contractions import contracts
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.tracer import trace

_SUMS = frozenset({"Add", "Sum"})
_SAME = frozenset({"DequantizeLinear", "Identity", "QuantizeLinear"})  # the same data, perhaps rounded


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block, x + f(x).

    Attributes:
        name: the node that sums.
        skip: the tensor x.
        branch: the tensor f(x).
        output: the sum.
        nodes: the nodes that compute f(x) and nothing else, in order.
        weights: the initializers that only they read.
    """

    name: str
    skip: str
    branch: str
    output: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]


def find_blocks(graph: ChannelGraph) -> tuple[Block, ...]:
    """Find the residual blocks of a traced model, in order: the innermost where they are nested.

    A sum of two tensors of one shape counts if one of them is computed from the other, by at least one layer with
    weights, and nobody else needs what computes it.
    """
    found = list(_BlockSearch(graph).blocks())
    sums = {block.name for block in found}
    return tuple(block for block in found if sums.isdisjoint(block.nodes))


class _BlockSearch:
    def __init__(self, graph: ChannelGraph) -> None:
        self._index = GraphIndex(graph.proto.graph)
        self._outputs = set(self._index.outputs)
        self._shapes = graph.shapes.shapes

    def blocks(self) -> Iterator[Block]:
        for node in self._index.nodes:
            if node.op_type in _SUMS and len(node.input) == 2:
                a, b = node.input
                found = (self._block(node, *pair) for pair in ((a, b), (b, a)) if a != b)
                yield from list(filter(None, found))[:1]

    def _block(self, node: NodeProto, skip: str, branch: str) -> Block | None:
        output = node.output[0]
        if self._shapes.get(skip) is None or self._shapes.get(skip) != self._shapes.get(output):
            return None
        inside = self._only_for(branch)
        read = {name for inner in inside.values() for name in reads(inner)}
        weights = {n for n in read & self._index.initializers.keys() if self._only_within(n, inside)}
        inputs = (inner.input for inner in inside.values() if contracts(inner))
        sources = (self._index.source(name, _SAME) for name in read)
        if self._index.source(skip, _SAME) not in sources or all(map(weights.isdisjoint, inputs)):
            return None
        names = tuple(sorted(inside, key=self._index.positions.__getitem__))
        return Block(node.name, skip, branch, output, names, tuple(sorted(weights)))

    def _only_for(self, tensor: str) -> dict[str, NodeProto]:
        """Return the nodes, by name, that only the single reader of a tensor needs."""
        inside: dict[str, NodeProto] = {}
        wanted = set() if self._index.only_reader(tensor) is None else {tensor}
        for node in reversed(self._index.nodes):  # readers before makers
            makes = [name for name in node.output if name]
            if not wanted.isdisjoint(makes) and all(n == tensor or self._only_within(n, inside) for n in makes):
                inside[node.name] = node
                wanted.update(reads(node))
        return inside

    def _only_within(self, tensor: str, inside: Mapping[str, NodeProto]) -> bool:
        """Whether all that read a tensor are nodes of a part of the graph."""
        readers = self._index.readers.get(tensor, [])
        return tensor not in self._outputs and all(reader.name in inside for reader in readers)


def without_blocks(graph: ChannelGraph, names: Iterable[str]) -> ChannelGraph:
    """Trace a model without some of its residual blocks.

    Args:
        graph: the model, traced.
        names: the nodes that sum, as `find_blocks` names the blocks.

    Returns:
        The dependencies of what remains, which knows what it was made from (`ChannelGraph.original`); the graph itself
        if it is without these blocks and no others.

    Raises:
        PlanError: the model has no such block (OP307).
    """
    whole, wanted = graph.original, tuple(dict.fromkeys(names))
    if set(wanted) == {block.name for block in graph.blocks}:
        return graph
    if not wanted:
        return whole
    if whole.reduced is None or {b.name for b in whole.reduced.blocks} != set(wanted):
        known = {block.name: block for block in find_blocks(whole)}
        for name in wanted:
            if name not in known:
                raise PlanError("OP307", "the model has no residual block of this name", where=name)
        blocks = tuple(block for name, block in known.items() if name in wanted)
        proto = _bypassed(whole.proto, blocks)
        reduced = trace(proto, whole.shapes.inputs, attention=whole.attention, grouped=whole.grouped)
        reduced.original, reduced.blocks = whole, blocks
        whole.reduced = reduced
    return whole.reduced


def _bypassed(proto: ModelProto, blocks: Sequence[Block]) -> ModelProto:
    """Copy a normalized model without blocks, and without what only they need."""
    sums = {block.name: block for block in blocks}
    instead: dict[str, str] = {}
    fixed = fixed_names(proto.graph.output, proto.graph.node)
    nodes: list[NodeProto] = []
    for source in proto.graph.node:
        node = with_inputs(source, (instead.get(name, name) for name in source.input))
        block = sums.get(node.name)
        if block is None:
            nodes.append(node)
            continue
        skip = instead.get(block.skip, block.skip)
        if block.output in fixed:
            nodes.append(helper.make_node("Identity", [skip], [block.output], name=node.name))
        else:
            instead[block.output] = skip
    outputs = [o.name for o in proto.graph.output]
    nodes = behind(outputs, nodes)
    needed = {*outputs, *(name for node in nodes for name in reads(node))}
    return with_nodes(proto, nodes, (t for t in proto.graph.initializer if t.name in needed))
