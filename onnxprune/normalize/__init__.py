"""Bring the many ways in which exporters write the same network into one form.

`normalize` runs passes over `ModelParts`. Each pass keeps topological order and what the model computes, bit for bit,
and finds nothing to do when run again.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.bodies import open_bodies
from onnxprune.model.wire import copy_model, copy_without
from onnxprune.normalize.cleanup import (
    drop_dead,
    drop_unread,
    drop_zero_states,
    name_nodes,
    open_negative_sizes,
    separate_inputs,
    unflatten_scales,
    unshare_vectors,
)
from onnxprune.normalize.constants import inline_functions, materialize_constants
from onnxprune.normalize.parts import ModelParts, add_initializers, remove_named
from onnxprune.normalize.shuffles import merge_shuffles
from onnxprune.normalize.statistics import compute_statistics


def normalize(proto: ModelProto, *, consume: bool = False) -> ModelProto:
    """Rewrite a model into the form that the rest of the package works on.

    The result computes bit for bit what the model computes, and:

    - has no model-local functions; Constant nodes, ConstantOfShape of constants, Identity of initializers and
      statistics of initializers are initializers;
    - initializers aren't graph inputs, and all are read; a vector is read by one node input only;
    - every node has a unique name, and channel shuffles are Gathers;
    - the nodes of the bodies of If, Loop and Scan are in the main graph, and so are the weights of all bodies
      (`onnxprune.model.bodies`).

    Args:
        proto: A model from `load`.
        consume: Whether the model may be changed into the result, which saves a copy of all weights.

    Returns:
        A new model, or the given one; deterministic.

    Raises:
        ModelError: A function can't be inlined (OP120), or a constant is too large (OP121) or malformed (OP123, or a
            tensor's code).
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    parts = ModelParts(copy_model(proto, "node", "initializer"), list(proto.graph.node), tensors)
    if proto.functions:
        inline_functions(parts, proto)
    for rewrite in _PASSES:
        rewrite(parts)
    parts.shell.graph.node.extend(parts.nodes)
    if consume:
        _move_into(proto, parts)
    else:
        add_initializers(parts.shell.graph, parts.tensors)
    _gather_shuffles(parts)
    return parts.shell


def _move_into(proto: ModelProto, parts: ModelParts) -> None:
    """Change the source model into the one that the parts describe; its initializers stay where they are."""
    graph, shell = proto.graph, parts.shell
    place = {id(tensor): i for i, tensor in enumerate(graph.initializer)}
    stay: dict[int, str] = {}
    more: dict[str, TensorProto] = {}
    for name, tensor in parts.tensors.items():
        index = place.get(id(tensor))
        if index is None or index in stay:  # made by a pass, or the same tensor under a second name
            more[name] = tensor
        else:
            stay[index] = name
    add_initializers(graph, more)
    for index in reversed(range(len(place))):
        if index in stay:
            graph.initializer[index].name = stay[index]
        else:
            del graph.initializer[index]
    for message, without in ((proto, "graph"), (graph, "initializer")):
        for field in message.DESCRIPTOR.fields:
            if field.name != without:
                message.ClearField(field.name)
    graph.MergeFrom(shell.graph)
    proto.MergeFrom(copy_without(shell, "graph"))
    parts.shell = proto


def _gather_shuffles(parts: ModelParts) -> None:
    """Replace channel shuffles by Gathers. Works on the whole model, as it needs shapes."""
    graph = parts.shell.graph
    nodes, positions = merge_shuffles(parts.shell)
    if not positions:
        return
    parts.nodes = nodes
    drop_dead(parts)
    before = parts.tensors
    drop_unread(parts)
    remove_named(graph.initializer, before.keys() - parts.tensors)
    add_initializers(graph, positions)
    live = [NodeProto.FromString(node.SerializeToString()) for node in parts.nodes]  # copies: the originals are deleted
    del graph.node[:]
    graph.node.extend(live)


def _open_all_bodies(parts: ModelParts) -> None:
    """Move the nodes of bodies into the main graph, see `onnxprune.model.bodies`."""
    parts.nodes, weights = open_bodies(parts.nodes, {*parts.tensors, *(i.name for i in parts.shell.graph.input)})
    parts.tensors |= weights


_PASSES: tuple[Callable[[ModelParts], None], ...] = (
    _open_all_bodies,
    separate_inputs,
    open_negative_sizes,
    materialize_constants,
    compute_statistics,
    drop_zero_states,
    unflatten_scales,
    drop_dead,
    drop_unread,
    name_nodes,
    unshare_vectors,
)
