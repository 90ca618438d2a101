"""Nodes that give constants become initialisers."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from onnxprune._tensors import byte_size, check_data, check_type, densify, elements
from onnxprune._validate import DEFAULT_DOMAINS, describe
from onnxprune.errors import ModelError
from onnxprune.normalise.draft import Draft, forget, with_inputs

_MAX_CONSTANT_BYTES = 2**32


def materialise_constants(draft: Draft) -> None:
    """Nodes that give constants are initialisers of the same name; copies of them are bypassed.

    An Identity stays where its output's name is needed: by the caller or by a subgraph.
    """
    fixed = draft.fixed_names()
    aliases: dict[str, str] = {}
    nodes: list[NodeProto] = []
    budget = _MAX_CONSTANT_BYTES
    for node in draft.nodes:
        if not aliases.keys().isdisjoint(node.input):
            node = with_inputs(node, [aliases.get(name, name) for name in node.input])
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
    forget(draft.shell.graph.value_info, aliases)


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
