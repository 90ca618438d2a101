"""Finds the residual blocks of a graph: sums of a tensor and something computed from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from onnx import ModelProto, NodeProto, helper

from onnxprune.errors import PlanError
from onnxprune.model.checks import captured_names
from onnxprune.model.graph import behind, reads
from onnxprune.model.wire import copy_without
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
    found = list(_Search(graph).blocks())
    sums = {block.name for block in found}
    return tuple(block for block in found if sums.isdisjoint(block.nodes))


class _Search:
    def __init__(self, graph: ChannelGraph) -> None:
        proto = graph.proto.graph
        self._nodes = list(proto.node)
        self._shapes = graph.shapes.shapes
        self._initializers = {t.name for t in proto.initializer}
        self._maker = {o: i for i, node in enumerate(self._nodes) for o in node.output if o}
        self._readers: dict[str, set[int]] = {}
        for i, node in enumerate(self._nodes):
            for name in reads(node):
                self._readers.setdefault(name, set()).add(i)
        for entry in proto.output:
            self._readers.setdefault(entry.name, set()).add(len(self._nodes))

    def blocks(self) -> Iterator[Block]:
        for index, node in enumerate(self._nodes):
            if node.op_type in _SUMS and len(node.input) == 2:
                a, b = node.input
                found = (self._block(index, *pair) for pair in ((a, b), (b, a)) if a != b)
                yield from list(filter(None, found))[:1]

    def _block(self, index: int, skip: str, branch: str) -> Block | None:
        output = self._nodes[index].output[0]
        if self._shapes.get(skip) is None or self._shapes.get(skip) != self._shapes.get(output):
            return None
        inside = self._only_for(branch, index)
        read = {name for i in inside for name in reads(self._nodes[i])}
        weights = {n for n in read & self._initializers if self._readers[n] <= inside}
        inputs = (node.input for node in map(self._nodes.__getitem__, inside) if contracts(node))
        if self._source(skip) not in map(self._source, read) or all(map(weights.isdisjoint, inputs)):
            return None
        names = tuple(self._nodes[i].name for i in sorted(inside))
        return Block(self._nodes[index].name, skip, branch, output, names, tuple(sorted(weights)))

    def _only_for(self, tensor: str, reader: int) -> set[int]:
        """Return the nodes that nobody needs but one reader of a tensor."""
        inside: set[int] = set()
        waiting = [-self._maker[tensor]] if tensor in self._maker else []  # the last node first: readers before makers
        seen = set(waiting)
        while waiting:
            index = -heappop(waiting)
            makes = [o for o in self._nodes[index].output if o]
            if tensor in makes and self._readers[tensor] != {reader}:
                return set()
            if any(not self._readers.get(o, set()) <= inside for o in makes if o != tensor):
                continue
            inside.add(index)
            for maker in {-self._maker[n] for n in reads(self._nodes[index]) if n in self._maker} - seen:
                seen.add(maker)
                heappush(waiting, maker)
        return inside

    def _source(self, tensor: str) -> str:
        """Return the tensor whose data this one holds."""
        while (maker := self._maker.get(tensor)) is not None and self._nodes[maker].op_type in _SAME:
            tensor = self._nodes[maker].input[0]
        return tensor


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
    fixed = {o.name for o in proto.graph.output}.union(*map(captured_names, proto.graph.node))
    nodes: list[NodeProto] = []
    for source in proto.graph.node:
        node = copy_without(source, "input")
        node.input.extend(instead.get(name, name) for name in source.input)
        block = sums.get(node.name)
        if block is None:
            nodes.append(node)
            continue
        skip = instead.get(block.skip, block.skip)
        if block.output in fixed:
            nodes.append(helper.make_node("Identity", [skip], [block.output], name=node.name))
        else:
            instead[block.output] = skip
    model = copy_without(proto, "graph")
    model.graph.CopyFrom(copy_without(proto.graph, "node", "initializer", "value_info"))
    nodes = behind((o.name for o in model.graph.output), nodes)
    needed = {name for node in nodes for name in reads(node)} | {o.name for o in model.graph.output}
    made = {name for node in nodes for name in node.output}
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    model.graph.value_info.extend(v for v in proto.graph.value_info if v.name in made)
    return model
