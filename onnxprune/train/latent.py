"""Weights that a quantized model stores as integers, trained as the real numbers that they are rounded from.

A DequantizeLinear that reads integers gets a QuantizeLinear before it, which reads real numbers: then gradients can
pass (`onnxprune.operators.quantized`), and steps too small to change an integer add up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.checks import captured_names
from onnxprune.model.file import Weights, set_tensor, weights

_DOMAINS = ("", "ai.onnx")
_ROUNDED = (np.int8, np.uint8, np.int16, np.uint16)
_BIAS = np.int32  # fine enough to be trained as if it weren't rounded; QuantizeLinear doesn't give it


def with_latents(proto: ModelProto) -> ModelProto:
    """Return a model whose integer weights are real numbers of the same names, rounded when they are read.

    Weights that are read by anything but one kind of DequantizeLinear, or in blocks, stay as they are.

    Args:
        proto: a normalized model.
    """
    readers = _readers(proto)
    if not readers:
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    before = weights(proto)
    for node in proto.graph.node:
        reads = node.input[0] if node.input and node.op_type == "DequantizeLinear" else ""
        copy.graph.node.extend(_rounding(node, copy, before) if reads in readers else [node])
    stored = weights(copy)
    for name, reader in readers.items():
        scale, zero, _ = _parameters(proto, reader)
        set_tensor(stored.tensor(name), (stored[name].astype(np.float32) - zero) * scale)
    return copy


def _rounding(reader: NodeProto, model: ModelProto, stored: Weights) -> list[NodeProto]:
    """Return what stands for a dequantization of integers once these are real numbers."""
    name, scale = reader.input[:2]
    dtype = stored.dtype(name)
    if dtype == _BIAS:
        return [helper.make_node("Identity", [name], reader.output, name=reader.name)]
    zero = reader.input[2] if len(reader.input) > 2 else ""
    if not zero:  # QuantizeLinear takes its type from it
        zero = f"{reader.name}:zero"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(stored.shape(scale), dtype), zero))
    between = f"{reader.name}:rounded"
    quantize = helper.make_node("QuantizeLinear", [name, scale, zero], [between], name=between)
    quantize.attribute.extend(a for a in reader.attribute if a.name == "axis")
    dequantize = NodeProto()
    dequantize.CopyFrom(reader)
    dequantize.input[0] = between
    return [quantize, dequantize]


def rounded(trained: ModelProto, proto: ModelProto) -> ModelProto:
    """Return a model with what was trained of the one that `with_latents` made of it, integers again."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    stored, found, readers = weights(copy), weights(trained), _readers(proto)
    for name in stored:
        array = found[name]
        if name in readers:
            scale, zero_point, dtype = _parameters(proto, readers[name])
            limits = np.iinfo(dtype)
            array = np.clip(np.rint(array.astype(np.float64) / scale) + zero_point, limits.min, limits.max)
        set_tensor(stored.tensor(name), array.astype(stored.dtype(name)))
    return copy


def _readers(proto: ModelProto) -> dict[str, NodeProto]:
    """Return the integer initializers that are weights, with a node that dequantizes each."""
    stored, every = weights(proto), defaultdict[str, list[NodeProto]](list)
    captured = set().union(*map(captured_names, proto.graph.node))
    for node in proto.graph.node:
        for name in set(node.input):
            every[name].append(node)
    found = {}
    for name in stored:
        nodes = every[name]
        if stored.dtype(name) not in (*_ROUNDED, _BIAS) or name in captured or not nodes:
            continue
        first = nodes[0]
        alike = all(
            n.op_type == "DequantizeLinear"
            and n.domain in _DOMAINS
            and n.input[0] == name
            and list(n.input) == list(first.input)
            and not any(a.name == "block_size" and a.i for a in n.attribute)
            for n in nodes
        )
        if alike and all(p in stored for p in first.input[1:] if p):
            found[name] = first
    return found


def _parameters(proto: ModelProto, reader: NodeProto) -> tuple[NDArray[Any], NDArray[Any], np.dtype[Any]]:
    """Return scale and zero point of a dequantization, in shapes that broadcast to its weight's, and its type."""
    stored = weights(proto)
    rank = len(stored.shape(reader.input[0]))
    axis = next((a.i for a in reader.attribute if a.name == "axis"), 1)
    scale = stored[reader.input[1]].astype(np.float32)
    given = len(reader.input) > 2 and reader.input[2]
    zero = stored[reader.input[2]].astype(np.float32) if given else np.zeros_like(scale)
    shape = [-1 if a == axis % max(rank, 1) else 1 for a in range(rank)] if scale.size > 1 else []
    return scale.reshape(shape), zero.reshape(shape), stored.dtype(reader.input[0])
