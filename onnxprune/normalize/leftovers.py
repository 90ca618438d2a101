"""What models carry that says nothing: unread weights, dead nodes, initializers as inputs, sizes of -1."""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.model.graph import attribute, behind, unique, with_inputs
from onnxprune.model.tensors import elements
from onnxprune.model.wire import copy_without
from onnxprune.normalize.draft import Draft, forget, names_of

_IR_VERSION = 8  # the first in which all that we write is valid


def separate_inputs(draft: Draft) -> None:
    """No initializer is a graph input; the IR version, at least 8, allows that."""
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
    """Every initializer is read by a node or a subgraph, or is an output."""
    read = draft.fixed_names().union(*(node.input for node in draft.nodes))
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name in read}


# What a tensor of zeros goes through and stays one.
_MOVEMENTS = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})


def drop_zero_states(draft: Draft) -> None:
    """No recurrent layer is given an initial state of zeros, which is what it starts with anyway.

    Exporters make one tensor of zeros for all layers of a stack, which would couple their hidden widths.
    """
    zeros: set[str] = set()

    def is_zero(name: str) -> bool:
        return name in zeros or (name in draft.tensors and _all_zero(draft.tensors[name]))

    for index, node in enumerate(draft.nodes):
        moved = node.op_type in _MOVEMENTS and node.input and is_zero(node.input[0])
        filled = node.op_type == "ConstantOfShape" and all(_all_zero(a.t) for a in node.attribute)
        if moved or filled:
            zeros.update(node.output)
        elif node.op_type in _RECURRENT:
            inputs = ["" if i in (5, 6) and is_zero(name) else name for i, name in enumerate(node.input)]
            if inputs != list(node.input):
                draft.nodes[index] = with_inputs(node, inputs)


def _all_zero(tensor: TensorProto) -> bool:
    return not np.asarray(numpy_helper.to_array(tensor)).any()


_UNITLESS = (TensorProto.STRING, TensorProto.BOOL, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def name_nodes(draft: Draft) -> None:
    """Every node has a name of its own; names that are unique, or the first of equals, stay."""
    taken = {node.name for node in draft.nodes}
    seen: set[str] = set()
    for index, node in enumerate(draft.nodes):
        if not node.name or node.name in seen:
            output = next(filter(None, node.output), "")
            node = copy_without(node, "name")
            node.name = unique(f"{node.op_type}_{output}", taken)
            draft.nodes[index] = node
        seen.add(node.name)


def unshare_vectors(draft: Draft) -> None:
    """A vector (one axis holds all its numbers, more than one) serves a single node input.

    Exporters store equal biases once, which would couple layers that have nothing to do with each
    other; a matrix that is shared was tied by the network's author and stays one tensor. Where the
    caller or a subgraph needs the name, every node input gets a copy.
    """
    uses = Counter(name for node in draft.nodes for name in node.input)
    owned = draft.fixed_names()
    vectors = {
        name for name, tensor in draft.tensors.items() if _is_vector(tensor) and uses[name] + (name in owned) > 1
    }
    taken = {*names_of(draft.nodes), *draft.tensors} | {i.name for i in draft.shell.graph.input}
    for index, node in enumerate(draft.nodes):
        inputs = list(node.input)
        for position, name in enumerate(inputs):
            if name in vectors and name in owned:
                inputs[position] = unique(f"{name}::{node.name}", taken)
                draft.tensors[inputs[position]] = draft.tensors[name]
            owned.add(name)
        if inputs != node.input:
            draft.nodes[index] = with_inputs(node, inputs)


def _is_vector(tensor: TensorProto) -> bool:
    numeric = tensor.data_type not in _UNITLESS
    return numeric and 1 < elements(tensor) == max(tensor.dims, default=0)


def unflatten_scales(draft: Draft) -> None:
    """Scales and zero points of weights in blocks of a few bits have an axis for rows and one for blocks."""
    taken = {*names_of(draft.nodes), *draft.tensors}
    for index, node in enumerate(draft.nodes):
        rows = attribute(node, "N")
        if node.op_type != "MatMulNBits" or not isinstance(rows, int) or rows < 1:
            continue
        inputs = list(node.input)
        for place in (2, 3):
            tensor = draft.tensors.get(inputs[place]) if place < len(inputs) else None
            if tensor is not None and len(tensor.dims) == 1 and tensor.dims[0] % rows == 0:
                inputs[place] = unique(f"{inputs[place]}::rows", taken)
                split = copy_without(tensor, "dims")
                split.dims.extend([rows, tensor.dims[0] // rows])
                draft.tensors[inputs[place]] = split
        if inputs != node.input:
            draft.nodes[index] = with_inputs(node, inputs)
