"""One shape for the many ways in which exporters write the same network.

`normalize` is a pipeline of passes over a `Draft`. Each pass has one contract, keeps topological
order and what the model computes, bit for bit, and finds nothing to do when run again.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.bodies import open_bodies
from onnxprune.model.wire import copy_model, copy_without
from onnxprune.normalize.constants import inline_functions, materialize_constants
from onnxprune.normalize.draft import Draft, add, forget
from onnxprune.normalize.leftovers import (
    drop_dead,
    drop_unread,
    drop_zero_states,
    name_nodes,
    open_negative_sizes,
    separate_inputs,
    unflatten_scales,
    unshare_vectors,
)
from onnxprune.normalize.shuffles import merge_shuffles
from onnxprune.normalize.statistics import compute_statistics


def normalize(proto: ModelProto, *, consume: bool = False) -> ModelProto:
    """Rewrite a model into the shape that the rest of the package works on.

    In the result there are no model-local functions; Constant nodes, ConstantOfShape of constants,
    Identity of initializers and statistics of initializers are initializers; initializers aren't graph
    inputs, and all are read; every node has a name of its own; a vector serves one node input only; a
    channel shuffle is a Gather; the nodes of If's bodies stand in the main graph (`onnxprune.model.bodies`),
    those of other subgraphs are left alone. The result computes bit for bit what the model computes.

    Args:
        proto: A model as `load` gives it.
        consume: Whether it may be changed into the result, which saves a copy of all weights.

    Returns:
        A new model, or the one given; the same for the same input.

    Raises:
        ModelError: A function can't be inlined (OP120), a constant is too large (OP121) or
            malformed (OP123, or a tensor's code).
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    draft = Draft(copy_model(proto, "node", "initializer"), list(proto.graph.node), tensors)
    if proto.functions:
        inline_functions(draft, proto)
    for rewrite in _PASSES:
        rewrite(draft)
    draft.shell.graph.node.extend(draft.nodes)
    if consume:
        _move_into(proto, draft)
    else:
        add(draft.shell.graph, draft.tensors)
    _gather_shuffles(draft)
    return draft.shell


def _move_into(proto: ModelProto, draft: Draft) -> None:
    """Make the draft's source the model that the draft describes; its initializers stay where they are."""
    graph, shell = proto.graph, draft.shell
    place = {id(tensor): i for i, tensor in enumerate(graph.initializer)}
    stay: dict[int, str] = {}
    more: dict[str, TensorProto] = {}
    for name, tensor in draft.tensors.items():
        index = place.get(id(tensor))
        if index is None or index in stay:  # made by a pass, or the same data under a second name
            more[name] = tensor
        else:
            stay[index] = name
    add(graph, more)
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
    draft.shell = proto


def _gather_shuffles(draft: Draft) -> None:
    """Channel shuffles are Gathers; works on the whole model, whose shapes it must know."""
    graph = draft.shell.graph
    nodes, positions = merge_shuffles(draft.shell)
    if not positions:
        return
    draft.nodes = nodes
    drop_dead(draft)
    before = draft.tensors
    drop_unread(draft)
    forget(graph.initializer, before.keys() - draft.tensors)
    add(graph, positions)
    live = [NodeProto.FromString(node.SerializeToString()) for node in draft.nodes]  # not views of what is deleted
    del graph.node[:]
    graph.node.extend(live)


def _open_all_bodies(draft: Draft) -> None:
    """Nodes of the bodies of If stand in the main graph, see `onnxprune.model.bodies`."""
    draft.nodes, weights = open_bodies(draft.nodes, {*draft.tensors, *(i.name for i in draft.shell.graph.input)})
    draft.tensors |= weights


_PASSES: tuple[Callable[[Draft], None], ...] = (
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
