"""Residual blocks: find them, score them, and remove them by rewiring.

A residual block is a sum of a tensor and something computed from it, x + f(x). Without the block, x takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.errors import PlanError
from onnxprune.importance.weight_view import WeightView
from onnxprune.model.bodies import loops_around
from onnxprune.model.graph import GraphIndex, behind, fixed_names, reads, with_inputs, with_nodes
from onnxprune.model.stream import Batches, Stream
from onnxprune.operators.contractions import contracts
from onnxprune.shapes import concretize
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import Block, PrunedGraph
from onnxprune.trace.tracer import trace

_SUMS = frozenset({"Add", "Sum"})
_SAME = frozenset({"DequantizeLinear", "Identity", "QuantizeLinear"})  # return their input, perhaps rounded


def find_blocks(graph: ChannelGraph) -> tuple[Block, ...]:
    """Return the residual blocks of a traced model, in order; of nested ones the innermost.

    A sum of two tensors of the same shape is a block if one of them is computed from the other by at least one layer
    with weights, and nothing else needs the nodes that compute it.
    """
    found = list(_BlockSearch(graph).blocks())
    sums = {block.name for block in found}
    return tuple(block for block in found if sums.isdisjoint(block.nodes))


class _BlockSearch:
    def __init__(self, graph: ChannelGraph) -> None:
        self._index = GraphIndex(graph.proto.graph)
        self._outputs = set(self._index.outputs)
        self._shapes = graph.shapes.shapes
        # What a loop's body computes can't be measured from outside.
        self._looped = {
            n.name for n, loops in zip(self._index.nodes, loops_around(self._index.nodes), strict=True) if loops
        }

    def blocks(self) -> Iterator[Block]:
        for node in self._index.nodes:
            if node.op_type in _SUMS and len(node.input) == 2 and node.name not in self._looped:
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


def without_blocks(graph: ChannelGraph, names: Iterable[str]) -> PrunedGraph:
    """Trace a model without some of its residual blocks.

    Args:
        graph: the traced model.
        names: the names of the blocks to remove.

    Returns:
        The model without these blocks, from which no channels were removed yet.

    Raises:
        PlanError: the model has no such block (OP307).
    """
    wanted = tuple(dict.fromkeys(names))
    if not wanted:
        return PrunedGraph(graph)
    known = {block.name: block for block in find_blocks(graph)}
    for name in wanted:
        if name not in known:
            raise PlanError("OP307", "the model has no residual block of this name", where=f'"{name}"')
    blocks = tuple(block for name, block in known.items() if name in wanted)
    proto = _bypassed(graph.proto, blocks)
    shapes = concretize(proto, graph.shapes.inputs, graph.shapes.feeds)
    rest = trace(proto, shapes=shapes, policies=graph.policies)
    return PrunedGraph(rest, original=graph, blocks=blocks)


def _bypassed(proto: ModelProto, blocks: Sequence[Block]) -> ModelProto:
    """Return a copy of a normalized model without some blocks and without what only they need."""
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


def choose_blocks(graph: ChannelGraph, count: int, batches: Batches | None = None) -> tuple[str, ...]:
    """Choose the least important residual blocks.

    Args:
        graph: the traced model.
        count: the number of blocks.
        batches: returns inputs to score blocks on; without them they are scored by their weights.

    Returns:
        The names of the blocks, in the model's order.

    Raises:
        PlanError: the count is negative (OP303), or the model has fewer blocks (OP315).
        ModelError: a weight isn't finite, or the model can't be run.
    """
    if count < 0:
        raise PlanError("OP303", f"{count} is out of range: must be at least 0", where="remove_blocks")
    blocks = find_blocks(graph)
    if count > len(blocks):
        names = ", ".join(block.name for block in blocks) or "none"
        cause = f"{count} residual blocks can't be removed: the model has {len(blocks)}"
        raise PlanError("OP315", cause, hint=f"removable blocks: {names}")
    chosen = rank_blocks(graph, batches)[:count]
    return tuple(block.name for block in blocks if block.name in chosen)


def rank_blocks(graph: ChannelGraph, batches: Batches | None = None) -> tuple[str, ...]:
    """Return the names of all residual blocks, the least important first; see `score_blocks`.

    Raises:
        ModelError: a weight isn't finite, or the model can't be run on the inputs.
    """
    blocks = find_blocks(graph)
    scores = score_blocks(graph, blocks, batches)
    return tuple(blocks[i].name for i in np.argsort(scores, kind="stable").tolist())


def score_blocks(graph: ChannelGraph, blocks: tuple[Block, ...], batches: Batches | None = None) -> NDArray[np.float64]:
    """Score residual blocks, higher is more important, shape (blocks,).

    With inputs, the score is 1 - cos(block's input, block's output), averaged over samples ("block influence", Men et
    al., ShortGPT, 2024). Without, or if ONNX Runtime can't run a block, it is the root mean square of the weights of
    the block's layers, normalizations folded in.

    Raises:
        ModelError: a weight isn't finite, or the model can't be run on the inputs.
    """
    if batches is None:
        return _weight_norms(graph, blocks)
    if any(block.output in graph.unmade for block in blocks):
        return _weight_norms(graph, blocks)  # those that run and those that don't must be comparable
    sums = np.zeros(len(blocks))
    samples = 0
    stream = Stream(graph.proto, batches)
    for tensors in stream.tensors([name for b in blocks for name in (b.skip, b.output)]):
        before = [_rows(tensors[b.skip]) for b in blocks]
        after = [_rows(tensors[b.output]) for b in blocks]
        sums += [float((1 - _cosines(x, y)).sum()) for x, y in zip(before, after, strict=True)]
        samples += len(before[0]) if before else 0
    return sums / max(samples, 1)


def _weight_norms(graph: ChannelGraph, blocks: tuple[Block, ...]) -> NDArray[np.float64]:
    weights = WeightView(graph)
    nodes = {node.name: node for node in graph.proto.graph.node}
    scores = []
    for block in blocks:
        layers = {n for name in block.nodes if contracts(nodes[name]) for n in nodes[name].input}
        own = [n for n in block.weights if n in layers and len(graph.shapes.shapes[n]) > 1]
        total = sum(float(weights.power_sums(name, 0, 2).sum()) for name in own)
        scores.append(np.sqrt(total / max(1, sum(np.prod(graph.shapes.shapes[name]) for name in own))))
    return np.array(scores, dtype=np.float64)


def _rows(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


def _cosines(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine between the rows of two arrays; 1 if a row is zero."""
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = (x * y).sum(axis=1)
    return np.asarray(np.divide(products, norms, out=np.ones_like(norms), where=norms > 0))
