"""Turn nodes that compute constants into initializers, and inline functions."""

from __future__ import annotations

import numpy as np
import onnx.inliner
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.checks import DEFAULT_DOMAINS, describe, subgraphs
from onnxprune.model.file import skeleton
from onnxprune.model.graph import attribute, with_inputs
from onnxprune.model.tensors import byte_size, check_data, check_type, densify, elements
from onnxprune.model.wire import copy_model
from onnxprune.normalize.parts import ModelParts, remove_named

_MAX_CONSTANT_BYTES = 2**32


def materialize_constants(parts: ModelParts) -> None:
    """Replace nodes that compute constants by initializers of the same name, and bypass copies of initializers.

    An Identity stays if its output is an output of the graph or captured by a body.
    """
    fixed = parts.fixed_names()
    aliases: dict[str, str] = {}
    nodes: list[NodeProto] = []
    budget = _MAX_CONSTANT_BYTES
    for node in parts.nodes:
        if not aliases.keys().isdisjoint(node.input):
            node = with_inputs(node, [aliases.get(name, name) for name in node.input])
        source = parts.tensors.get(node.input[0]) if len(node.input) == 1 else None
        op = node.op_type if node.domain in DEFAULT_DOMAINS and len(node.output) == 1 else ""
        if op == "Constant":
            parts.tensors[node.output[0]] = _constant(node)
        elif op == "ConstantOfShape" and source is not None:
            filled = _filled(node, source, budget)
            budget -= byte_size(filled)
            parts.tensors[node.output[0]] = filled
        elif op == "Identity" and source is not None and node.output[0] not in fixed:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    parts.nodes = nodes
    remove_named(parts.shell.graph.value_info, aliases)


def _constant(node: NodeProto) -> TensorProto:
    """Return the value of a Constant node, whichever attribute holds it."""
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
    """Return the output of a ConstantOfShape node for a constant shape, of at most `budget` bytes."""
    where = describe(node)
    value = attribute(node, "value", TensorProto(data_type=1, dims=[1], float_data=[0]))
    single = isinstance(value, TensorProto) and elements(value) == 1
    if shape.data_type != TensorProto.INT64 or len(shape.dims) != 1 or not single:
        raise ModelError("OP123", "the shape or the value isn't a vector", where=where)
    filled = TensorProto(data_type=value.data_type, dims=numpy_helper.to_array(shape).tolist())
    check_type(filled, where)
    if byte_size(filled) > budget:
        cause = f"a constant of shape {list(filled.dims)} would take {byte_size(filled)} bytes"
        raise ModelError("OP121", cause, where=where)
    element = numpy_helper.to_array(value).reshape(())
    return numpy_helper.from_array(np.full(tuple(filled.dims), element))


_MAX_INLINED_NODES = 200_000
_MAX_CALL_DEPTH = 50


def inline_functions(parts: ModelParts, proto: ModelProto) -> None:
    """Replace calls of model-local functions by their bodies, and remove the functions."""
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
    shell = copy_model(result, "node", "initializer", "input")
    shell.graph.input.extend(proto.graph.input)
    parts.shell, parts.nodes = shell, list(result.graph.node)


def _check_calls(proto: ModelProto) -> None:
    """Raise ModelError (OP120) for functions that are recursive, or too large when inlined."""
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
