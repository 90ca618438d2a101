"""Rewrite a model without its removed channels: slice weights, adapt attributes and parameters, copy the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from onnxprune.channels.values import Ids
from onnxprune.model.bodies import close_bodies, mark_alike
from onnxprune.model.graph import behind, names_in, opsets_of, reads, unique
from onnxprune.model.tensors import by_group, set_tensor
from onnxprune.model.wire import copy_without
from onnxprune.operators.card import card_of
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.trace.pruned_graph import PrunedGraph


def rewrite(kept: PrunedGraph) -> ModelProto:
    """Return the model without what was removed.

    States have their new shapes. Everything else is unchanged: names, metadata, opsets, symbolic dimensions. Dead nodes
    and unused initializers are removed; value_info has the new shapes, so that `onnx.checker` passes with full_check.

    Args:
        kept: the traced model and what was removed from it.

    Returns:
        A new model; the traced one is untouched.

    Raises:
        RewriteError: a parameter computed at run time can't be adapted.
    """
    source = kept.graph.proto
    model = copy_without(source, "graph")
    model.graph.CopyFrom(copy_without(source.graph, "node", "initializer", "value_info"))
    model = declared(kept, model)
    nodes, constants = _nodes(kept)
    nodes = behind((o.name for o in model.graph.output), nodes)
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in reads(node)} | {o.name for o in model.graph.output}
    _add_weights(model, kept, used)
    model.graph.initializer.extend(t for t in constants if t.name in used)
    made = {name for node in nodes for name in node.output}
    model.graph.value_info.extend(_value_info(kept, made))
    return close_bodies(model)


def declared(kept: PrunedGraph, model: ModelProto) -> ModelProto:
    """Return a model with the new shapes of states on its inputs and outputs; the given one if there are no states."""
    if not kept.graph.states:
        return model
    changed = ModelProto()
    changed.CopyFrom(model)
    for entry in (*changed.graph.input, *changed.graph.output):
        if any(entry.name in (state.input, state.output) for state in kept.graph.states):
            resize(kept, entry)
    return changed


def _nodes(kept: PrunedGraph) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return adapted copies of all nodes, and their new initializers."""
    graph = kept.graph
    versions = opsets_of(graph.proto)
    namer = partial(unique, taken=names_in(graph.proto.graph))
    weights = {tensor.name: tensor for tensor in graph.proto.graph.initializer}
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for source in graph.proto.graph.node:
        node = NodeProto()
        node.CopyFrom(source)
        adapt = card_of(node.domain, node.op_type).rewrite
        if adapt is not None and _changed(kept, node):
            edit = RewriteNode(node, versions.get(node.domain or "ai.onnx", 1), graph.shapes, kept, namer, weights)
            adapt(edit)
            mark_alike(node, [*edit.before, *edit.after])
            nodes += [*edit.before, node, *edit.after]
            constants += [numpy_helper.from_array(v, n) for n, v in edit.constants.items()]
        else:
            nodes.append(node)
    return nodes, constants


def _changed(kept: PrunedGraph, node: NodeProto) -> bool:
    known = kept.graph.shapes.shapes
    return any(kept.shape(n) != known[n] for n in (*node.input, *node.output) if n in known)


def _add_weights(model: ModelProto, kept: PrunedGraph, used: set[str]) -> None:
    """Add what remains of the weights. They are sliced one at a time, so that few are in memory twice."""
    slices = kept.positions()
    for tensor in kept.graph.proto.graph.initializer:
        if tensor.name not in used:
            continue
        removed = slices.get(tensor.name)
        if removed is None:
            model.graph.initializer.append(tensor)
        else:
            sliced = model.graph.initializer.add(name=tensor.name, doc_string=tensor.doc_string)
            set_tensor(sliced, _sliced(kept, tensor, removed))


def _sliced(kept: PrunedGraph, tensor: TensorProto, removed: Mapping[int, Ids]) -> np.ndarray:
    array = numpy_helper.to_array(tensor)
    for axis, positions in sorted(removed.items(), reverse=True):  # the groups along the first axis come last
        groups = kept.graph.per_group.get((tensor.name, axis))
        if groups is None:
            array = np.delete(array, positions, axis)
        else:
            array = by_group(np.delete(by_group(array, groups), positions, 0), groups)
    return array


def _value_info(kept: PrunedGraph, made: set[str]) -> Iterable[ValueInfoProto]:
    """Yield the shapes that the model declares, with the new sizes of pruned axes."""
    for source in kept.graph.proto.graph.value_info:
        if source.name not in made:
            continue
        info = ValueInfoProto()
        info.CopyFrom(source)
        resize(kept, info)
        yield info


def resize(kept: PrunedGraph, info: ValueInfoProto) -> None:
    """Declare the new sizes of a tensor's pruned axes."""
    for axis, dim in enumerate(info.type.tensor_type.shape.dim):
        mask = kept.mask(info.name, axis)
        if mask is not None and not mask.all():
            dim.dim_value = int(mask.sum())
