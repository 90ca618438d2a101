"""Removes residual blocks by rewiring: whoever read the sum reads the tensor that was added to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import ModelProto, NodeProto, helper

from onnxprune._uses import behind, reads
from onnxprune._validate import captured_names
from onnxprune._wire import copy_without
from onnxprune.blocks.find import Block, find_blocks
from onnxprune.errors import PlanError
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.tracer import trace


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
    """Copy a normalised model without blocks, and without what only they need."""
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
