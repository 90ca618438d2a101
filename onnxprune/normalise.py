"""One shape for the many ways in which exporters write the same network.

`normalise` is a pipeline of passes over a `_Draft`. Each pass has one contract, keeps topological
order and what the model computes, bit for bit, and finds nothing to do when run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune._bodies import open_bodies
from onnxprune._shuffles import merge_shuffles
from onnxprune._tensors import byte_size, check_data, check_type, densify, elements
from onnxprune._uses import reads
from onnxprune._validate import DEFAULT_DOMAINS, captured_names, describe, subgraphs
from onnxprune._wire import copy_without
from onnxprune.errors import ModelError
from onnxprune.model import skeleton

_IR_VERSION = 8  # the first in which all that we write is valid
_MAX_CONSTANT_BYTES = 2**32
_MAX_INLINED_NODES = 200_000
_MAX_CALL_DEPTH = 50
_UNITLESS = (TensorProto.STRING, TensorProto.BOOL, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


@dataclass(slots=True)
class _Draft:
    """A model in parts, so that passes neither copy weights nor touch their input.

    Attributes:
        shell: The model without nodes and initialisers; ours to change.
        nodes: In topological order; a pass replaces a node, it never changes one.
        tensors: Initialisers by name, which overrides the tensor's own; shared, never changed.
    """

    shell: ModelProto
    nodes: list[NodeProto]
    tensors: dict[str, TensorProto]

    def fixed_names(self) -> set[str]:
        """Collect the names that readers outside of the nodes' inputs rely on."""
        names = {value.name for value in self.shell.graph.output}
        return names.union(*map(captured_names, self.nodes))


def normalise(proto: ModelProto, *, consume: bool = False) -> ModelProto:
    """Rewrite a model into the shape that the rest of the package works on.

    In the result there are no model-local functions; Constant nodes, ConstantOfShape of constants
    and Identity of initialisers are initialisers; initialisers aren't graph inputs, and all are
    read; every node has a name of its own; a vector serves one node input only; a channel shuffle is
    a Gather; the nodes of If's bodies stand in the main graph (`onnxprune._bodies`), those of other
    subgraphs are left alone. The result computes bit for bit what the model computes.

    Args:
        proto: A model as `load` gives it.
        consume: Whether it may be changed into the result, which saves a copy of all weights.

    Returns:
        A new model, or the one given; the same for the same input.

    Raises:
        ModelError: A function can't be inlined (OP120), a constant is too large (OP121) or
            malformed (OP123, or a tensor's code).
    """
    shell = copy_without(proto, "graph")
    shell.graph.CopyFrom(copy_without(proto.graph, "node", "initializer"))
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    draft = _Draft(shell, list(proto.graph.node), tensors)
    if proto.functions:
        _inline_functions(draft, proto)
    for rewrite in _PASSES:
        rewrite(draft)
    draft.shell.graph.node.extend(draft.nodes)
    if consume:
        _move_into(proto, draft)
    else:
        _add(draft.shell.graph, draft.tensors)
    _merge_shuffles(draft)
    return draft.shell


def _move_into(proto: ModelProto, draft: _Draft) -> None:
    """Make the draft's source the model that the draft describes; its initialisers stay where they are."""
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
    _add(graph, more)
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


def _add(graph: GraphProto, tensors: Mapping[str, TensorProto]) -> None:
    for name, tensor in tensors.items():
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = name


def _merge_shuffles(draft: _Draft) -> None:
    """Channel shuffles are Gathers; works on the whole model, whose shapes it must know."""
    graph = draft.shell.graph
    nodes, positions = merge_shuffles(draft.shell)
    if not positions:
        return
    draft.nodes = nodes
    _drop_dead(draft)
    before = draft.tensors
    _drop_unread(draft)
    _forget(graph.initializer, before.keys() - draft.tensors)
    _add(graph, positions)
    live = [NodeProto.FromString(node.SerializeToString()) for node in draft.nodes]  # not views of what is deleted
    del graph.node[:]
    graph.node.extend(live)


def _inline_functions(draft: _Draft, proto: ModelProto) -> None:
    """Calls of model-local functions are replaced by their bodies; no function remains."""
    _check_calls(proto)
    result = skeleton(proto)
    try:
        result = onnx.inliner.inline_local_functions(result)
        if result.functions:  # of another opset than the model's
            result = onnx.inliner.inline_local_functions(result, convert_version=True)
    except Exception as error:
        raise ModelError("OP120", f"functions can't be inlined: {error}") from error
    if result.functions:
        name = result.functions[0].name
        raise ModelError("OP120", "the function can't be inlined", where=f"function {name!r}")
    shell = copy_without(result, "graph")
    shell.graph.CopyFrom(copy_without(result.graph, "node", "initializer", "input"))
    shell.graph.input.extend(proto.graph.input)
    draft.shell, draft.nodes = shell, list(result.graph.node)


def _check_calls(proto: ModelProto) -> None:
    """Refuse functions that never end, or that grow beyond bounds, when they are inlined."""
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(bodies) < len(proto.functions):
        raise ModelError("OP120", "a function is defined twice")
    sizes: dict[tuple[str, str, str], int] = {}

    def size(node: NodeProto, depth: int) -> int:
        key = (node.domain, node.op_type, node.overload)
        total = 1 + sum(size(inner, depth) for graph in subgraphs(node) for inner in graph.node)
        if key not in bodies:
            return total
        if depth > _MAX_CALL_DEPTH:
            where = f"function {node.op_type!r}"
            raise ModelError("OP120", "the function calls itself, or calls nest too deeply", where=where)
        if key not in sizes:
            sizes[key] = sum(size(inner, depth + 1) for inner in bodies[key].node)
        return total + sizes[key]

    try:
        count = sum(size(node, 0) for node in proto.graph.node)
    except RecursionError as error:
        raise ModelError("OP120", "calls of functions are nested too deeply") from error
    if count > _MAX_INLINED_NODES:
        raise ModelError("OP120", f"inlining the functions would give {count} nodes")


def _separate_inputs(draft: _Draft) -> None:
    """No initialiser is a graph input; the IR version, at least 8, allows that."""
    _forget(draft.shell.graph.input, draft.tensors)
    draft.shell.ir_version = max(draft.shell.ir_version, _IR_VERSION)


def _open_negative_sizes(draft: _Draft) -> None:
    """Sizes of -1, some exporters' "any", are unknown instead."""
    graph = draft.shell.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _materialise_constants(draft: _Draft) -> None:
    """Nodes that give constants are initialisers of the same name; copies of them are bypassed.

    An Identity stays where its output's name is needed: by the caller or by a subgraph.
    """
    fixed = draft.fixed_names()
    aliases: dict[str, str] = {}
    nodes: list[NodeProto] = []
    budget = _MAX_CONSTANT_BYTES
    for node in draft.nodes:
        if not aliases.keys().isdisjoint(node.input):
            node = _with_inputs(node, [aliases.get(name, name) for name in node.input])
        source = draft.tensors.get(node.input[0]) if len(node.input) == 1 else None
        op = node.op_type if node.domain in DEFAULT_DOMAINS and len(node.output) == 1 else ""
        if op == "Constant":
            draft.tensors[node.output[0]] = _constant(node)
        elif op == "ConstantOfShape" and source is not None:
            filled = _filled(node, source, budget)
            budget -= byte_size(filled)
            draft.tensors[node.output[0]] = filled
        elif op == "Identity" and source is not None and node.output[0] not in fixed:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    draft.nodes = nodes
    _forget(draft.shell.graph.value_info, aliases)


# What a tensor of zeros goes through and stays one.
_MOVEMENTS = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})


def _drop_zero_states(draft: _Draft) -> None:
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
                draft.nodes[index] = _with_inputs(node, inputs)


def _all_zero(tensor: TensorProto) -> bool:
    return not np.asarray(numpy_helper.to_array(tensor)).any()


def _drop_dead(draft: _Draft) -> None:
    """Every node is needed for an output."""
    needed = {value.name for value in draft.shell.graph.output}
    live = []
    for node in reversed(draft.nodes):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            live.append(node)
    draft.nodes = live[::-1]


def _drop_unread(draft: _Draft) -> None:
    """Every initialiser is read by a node or a subgraph, or is an output."""
    read = draft.fixed_names().union(*(node.input for node in draft.nodes))
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name in read}


def _name_nodes(draft: _Draft) -> None:
    """Every node has a name of its own; names that are unique, or the first of equals, stay."""
    taken = {node.name for node in draft.nodes}
    seen: set[str] = set()
    for index, node in enumerate(draft.nodes):
        if not node.name or node.name in seen:
            output = next(filter(None, node.output), "")
            node = copy_without(node, "name")
            node.name = _unique(f"{node.op_type}_{output}", taken)
            draft.nodes[index] = node
        seen.add(node.name)


def _unshare_vectors(draft: _Draft) -> None:
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
    taken = {*_names(draft.nodes), *draft.tensors} | {i.name for i in draft.shell.graph.input}
    for index, node in enumerate(draft.nodes):
        inputs = list(node.input)
        for position, name in enumerate(inputs):
            if name in vectors and name in owned:
                inputs[position] = _unique(f"{name}::{node.name}", taken)
                draft.tensors[inputs[position]] = draft.tensors[name]
            owned.add(name)
        if inputs != node.input:
            draft.nodes[index] = _with_inputs(node, inputs)


def _unflatten_scales(draft: _Draft) -> None:
    """Scales and zero points of weights in blocks of a few bits have an axis for rows and one for blocks."""
    taken = {*_names(draft.nodes), *draft.tensors}
    for index, node in enumerate(draft.nodes):
        if node.op_type != "MatMulNBits":
            continue
        rows = next((a.i for a in node.attribute if a.name == "N"), 0)
        inputs = list(node.input)
        for place in (2, 3):
            tensor = draft.tensors.get(inputs[place]) if place < len(inputs) else None
            if tensor is not None and len(tensor.dims) == 1 and rows and tensor.dims[0] % rows == 0:
                inputs[place] = _unique(f"{inputs[place]}::rows", taken)
                split = copy_without(tensor, "dims")
                split.dims.extend([rows, tensor.dims[0] // rows])
                draft.tensors[inputs[place]] = split
        if inputs != node.input:
            draft.nodes[index] = _with_inputs(node, inputs)


def _open_bodies(draft: _Draft) -> None:
    """Nodes of the bodies of If stand in the main graph, see `onnxprune._bodies`."""
    draft.nodes, weights = open_bodies(draft.nodes, {*draft.tensors, *(i.name for i in draft.shell.graph.input)})
    draft.tensors |= weights


_PASSES: tuple[Callable[[_Draft], None], ...] = (
    _open_bodies,
    _separate_inputs,
    _open_negative_sizes,
    _materialise_constants,
    _drop_zero_states,
    _unflatten_scales,
    _drop_dead,
    _drop_unread,
    _name_nodes,
    _unshare_vectors,
)


def _constant(node: NodeProto) -> TensorProto:
    """Give a Constant node's value, however it is spelled."""
    where = describe(node)
    if len(node.attribute) != 1:
        raise ModelError("OP123", "a Constant needs one attribute, its value", where=where)
    (attribute,) = node.attribute
    match attribute.name, attribute.type:
        case "value", AttributeProto.TENSOR:
            tensor: TensorProto = attribute.t
            return tensor
        case "sparse_value", AttributeProto.SPARSE_TENSOR:
            return densify(attribute.sparse_tensor, where)
        case "value_float", AttributeProto.FLOAT:
            return numpy_helper.from_array(np.array(attribute.f, np.float32))
        case "value_floats", AttributeProto.FLOATS:
            return numpy_helper.from_array(np.array(attribute.floats, np.float32))
        case "value_int", AttributeProto.INT:
            return numpy_helper.from_array(np.array(attribute.i, np.int64))
        case "value_ints", AttributeProto.INTS:
            return numpy_helper.from_array(np.array(attribute.ints, np.int64))
        case "value_string", AttributeProto.STRING:
            return _text(TensorProto(string_data=[attribute.s]), where)
        case "value_strings", AttributeProto.STRINGS:
            texts = attribute.strings
            return _text(TensorProto(dims=[len(texts)], string_data=texts), where)
    cause = f"a Constant can't be given as attribute {attribute.name!r} of this type"
    raise ModelError("OP123", cause, where=where)


def _text(tensor: TensorProto, where: str) -> TensorProto:
    tensor.data_type = TensorProto.STRING
    check_data(tensor, where)
    return tensor


def _filled(node: NodeProto, shape: TensorProto, budget: int) -> TensorProto:
    """Give what a ConstantOfShape node makes of a constant shape, in at most `budget` bytes."""
    where = describe(node)
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    value = TensorProto(data_type=1, dims=[1], float_data=[0]) if value is None else value
    if shape.data_type != TensorProto.INT64 or len(shape.dims) != 1 or elements(value) != 1:
        raise ModelError("OP123", "the shape or the value isn't a vector", where=where)
    filled = TensorProto(data_type=value.data_type, dims=numpy_helper.to_array(shape).tolist())
    check_type(filled, where)
    if byte_size(filled) > budget:
        cause = f"a constant of shape {list(filled.dims)} would take {byte_size(filled)} bytes"
        raise ModelError("OP121", cause, where=where)
    element = numpy_helper.to_array(value).reshape(())
    return numpy_helper.from_array(np.full(tuple(filled.dims), element))


def _is_vector(tensor: TensorProto) -> bool:
    numeric = tensor.data_type not in _UNITLESS
    return numeric and 1 < elements(tensor) == max(tensor.dims, default=0)


def _with_inputs(node: NodeProto, inputs: list[str]) -> NodeProto:
    copy = copy_without(node, "input")
    copy.input.extend(inputs)
    return copy


def _forget(values: Any, names: Container[str]) -> None:
    """Delete the entries of these names from a list of inputs or types."""
    for index in reversed(range(len(values))):
        if values[index].name in names:
            del values[index]


def _names(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Go through the names that nodes read or give, those inside of subgraphs included."""
    for node in nodes:
        yield from (*node.input, *node.output)
        for graph in subgraphs(node):
            yield from (value.name for value in graph.input)
            yield from (tensor.name for tensor in graph.initializer)
            yield from (sparse.values.name for sparse in graph.sparse_initializer)
            yield from _names(graph.node)


def _unique(name: str, taken: set[str]) -> str:
    """Give the name, numbered if it is taken, and take it."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
