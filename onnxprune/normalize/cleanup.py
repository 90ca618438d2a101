"""Clean-up passes: unread weights, dead nodes, initializers among the inputs, sizes of -1, names, shared vectors."""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.model.graph import RECURRENT, attribute, behind, unique, with_inputs
from onnxprune.model.tensors import elements
from onnxprune.model.wire import copy_without
from onnxprune.normalize.parts import ModelParts, remove_named

_IR_VERSION = 8  # the first in which everything that we write is valid


def separate_inputs(parts: ModelParts) -> None:
    """Remove initializers from the graph's inputs; the IR version becomes at least 8, which allows that."""
    remove_named(parts.shell.graph.input, parts.tensors)
    parts.shell.ir_version = max(parts.shell.ir_version, _IR_VERSION)


def open_negative_sizes(parts: ModelParts) -> None:
    """Clear sizes of -1, which some exporters write for unknown ones."""
    graph = parts.shell.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def drop_dead(parts: ModelParts) -> None:
    """Remove the nodes that no output needs."""
    parts.nodes = behind((value.name for value in parts.shell.graph.output), parts.nodes)


def drop_unread(parts: ModelParts) -> None:
    """Remove the initializers that neither a node nor a body reads, unless they are outputs."""
    read = parts.fixed_names().union(*(node.input for node in parts.nodes))
    parts.tensors = {name: tensor for name, tensor in parts.tensors.items() if name in read}


# Operators that return zeros for a tensor of zeros.
_MOVEMENTS = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def drop_zero_states(parts: ModelParts) -> None:
    """Remove initial states of zeros from recurrent layers; zeros are the default.

    Exporters make one tensor of zeros for all layers of a stack, which would couple their hidden widths.
    """
    zeros: set[str] = set()

    def is_zero(name: str) -> bool:
        return name in zeros or (name in parts.tensors and _all_zero(parts.tensors[name]))

    for index, node in enumerate(parts.nodes):
        moved = node.op_type in _MOVEMENTS and node.input and is_zero(node.input[0])
        filled = node.op_type == "ConstantOfShape" and all(_all_zero(a.t) for a in node.attribute)
        if moved or filled:
            zeros.update(node.output)
        elif node.op_type in RECURRENT:
            inputs = ["" if i in (5, 6) and is_zero(name) else name for i, name in enumerate(node.input)]
            if inputs != list(node.input):
                parts.nodes[index] = with_inputs(node, inputs)


def _all_zero(tensor: TensorProto) -> bool:
    return not np.asarray(numpy_helper.to_array(tensor)).any()


_UNITLESS = (TensorProto.STRING, TensorProto.BOOL, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def name_nodes(parts: ModelParts) -> None:
    """Give every node a unique name; a name that is unique, or the first of its kind, stays."""
    taken = {node.name for node in parts.nodes}
    seen: set[str] = set()
    for index, node in enumerate(parts.nodes):
        if not node.name or node.name in seen:
            output = next(filter(None, node.output), "")
            node = copy_without(node, "name")
            node.name = unique(f"{node.op_type}_{output}", taken)
            parts.nodes[index] = node
        seen.add(node.name)


def unshare_vectors(parts: ModelParts) -> None:
    """Give every node input its own copy of a vector (more than one element, all along one axis).

    Exporters store equal biases once, which would couple unrelated layers. A shared matrix was tied by the network's
    author and stays one tensor. An output, or what a body captures, keeps the name.
    """
    uses = Counter(name for node in parts.nodes for name in node.input)
    owned = parts.fixed_names()
    vectors = {
        name for name, tensor in parts.tensors.items() if _is_vector(tensor) and uses[name] + (name in owned) > 1
    }
    taken = parts.all_names()
    for index, node in enumerate(parts.nodes):
        inputs = list(node.input)
        for position, name in enumerate(inputs):
            if name in vectors and name in owned:
                inputs[position] = unique(f"{name}::{node.name}", taken)
                parts.tensors[inputs[position]] = parts.tensors[name]
            owned.add(name)
        if inputs != node.input:
            parts.nodes[index] = with_inputs(node, inputs)


def _is_vector(tensor: TensorProto) -> bool:
    numeric = tensor.data_type not in _UNITLESS
    return numeric and 1 < elements(tensor) == max(tensor.dims, default=0)


def unflatten_scales(parts: ModelParts) -> None:
    """Give scales and zero points of blockwise quantized weights two axes, rows and blocks, instead of one."""
    taken = parts.all_names()
    for index, node in enumerate(parts.nodes):
        rows = attribute(node, "N")
        if node.op_type != "MatMulNBits" or not isinstance(rows, int) or rows < 1:
            continue
        inputs = list(node.input)
        for place in (2, 3):
            tensor = parts.tensors.get(inputs[place]) if place < len(inputs) else None
            if tensor is not None and len(tensor.dims) == 1 and tensor.dims[0] % rows == 0:
                inputs[place] = unique(f"{inputs[place]}::rows", taken)
                split = copy_without(tensor, "dims")
                split.dims.extend([rows, tensor.dims[0] // rows])
                parts.tensors[inputs[place]] = split
        if inputs != node.input:
            parts.nodes[index] = with_inputs(node, inputs)
