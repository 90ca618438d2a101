"""What models carry that says nothing: unread weights, dead nodes, initialisers as inputs, sizes of -1."""

from __future__ import annotations

from onnxprune._uses import behind
from onnxprune.normalise.draft import Draft, forget

_IR_VERSION = 8  # the first in which all that we write is valid


def separate_inputs(draft: Draft) -> None:
    """No initialiser is a graph input; the IR version, at least 8, allows that."""
    forget(draft.shell.graph.input, draft.tensors)
    draft.shell.ir_version = max(draft.shell.ir_version, _IR_VERSION)


def open_negative_sizes(draft: Draft) -> None:
    """Sizes of -1, some exporters' "any", are unknown instead."""
    graph = draft.shell.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def drop_dead(draft: Draft) -> None:
    """Every node is needed for an output."""
    draft.nodes = behind((value.name for value in draft.shell.graph.output), draft.nodes)


def drop_unread(draft: Draft) -> None:
    """Every initialiser is read by a node or a subgraph, or is an output."""
    read = draft.fixed_names().union(*(node.input for node in draft.nodes))
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name in read}
