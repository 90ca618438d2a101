"""Training of quantized models (QAT): integer weights become real ones, fake-quantized when they are read.

A QuantizeLinear that reads the real weights is put before their DequantizeLinear. Gradients pass through both
(`onnxprune.operators.quantized`), and steps too small to change an integer add up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.checks import captured_names
from onnxprune.model.file import Weights, set_tensor, weights
from onnxprune.model.tensors import with_weights

_DOMAINS = ("", "ai.onnx")
_QUANTIZED = (np.int8, np.uint8, np.int16, np.uint16)
_BIAS = np.int32  # trained without rounding: it is fine-grained, and QuantizeLinear can't produce it


def with_fake_quantization(proto: ModelProto) -> ModelProto:
    """Return a model whose integer weights are real ones of the same names, followed by fake quantization.

    Weights that have readers other than one kind of DequantizeLinear, or are quantized in blocks, stay integers.

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
        copy.graph.node.extend(_fake_quantized(node, copy, before) if reads in readers else [node])
    stored = weights(copy)
    for name, reader in readers.items():
        scale, zero, _ = _parameters(before, reader)
        set_tensor(stored.tensor(name), (stored[name].astype(np.float32) - zero) * scale)
    return copy


def _fake_quantized(reader: NodeProto, model: ModelProto, stored: Weights) -> list[NodeProto]:
    """Return the nodes that replace a DequantizeLinear once its weight is real."""
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


def requantized(trained: ModelProto, proto: ModelProto) -> ModelProto:
    """Return the original model with the weights of a trained one from `with_fake_quantization`, as integers again."""
    stored, found, readers = weights(proto), weights(trained), _readers(proto)
    arrays = {name: found[name] for name in stored}
    for name, reader in readers.items():
        scale, zero_point, dtype = _parameters(stored, reader)
        limits = np.iinfo(dtype)
        integers = np.rint(arrays[name].astype(np.float64) / scale) + zero_point
        arrays[name] = np.clip(integers, limits.min, limits.max).astype(dtype)
    return with_weights(proto, arrays)


def _readers(proto: ModelProto) -> dict[str, NodeProto]:
    """Return the integer weights that can be trained, each with a node that dequantizes it."""
    stored, every = weights(proto), defaultdict[str, list[NodeProto]](list)
    captured = set().union(*map(captured_names, proto.graph.node))
    for node in proto.graph.node:
        for name in set(node.input):
            every[name].append(node)
    found = {}
    for name in stored:
        nodes = every[name]
        if stored.dtype(name) not in (*_QUANTIZED, _BIAS) or name in captured or not nodes:
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


def _parameters(stored: Weights, reader: NodeProto) -> tuple[NDArray[Any], NDArray[Any], np.dtype[Any]]:
    """Return the scale and zero point of a DequantizeLinear, broadcastable to its weight, and the weight's type."""
    rank = len(stored.shape(reader.input[0]))
    axis = next((a.i for a in reader.attribute if a.name == "axis"), 1)
    scale = stored[reader.input[1]].astype(np.float32)
    given = len(reader.input) > 2 and reader.input[2]
    zero = stored[reader.input[2]].astype(np.float32) if given else np.zeros_like(scale)
    shape = [-1 if a == axis % max(rank, 1) else 1 for a in range(rank)] if scale.size > 1 else []
    return scale.reshape(shape), zero.reshape(shape), stored.dtype(reader.input[0])
