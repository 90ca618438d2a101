"""Training of quantized models (QAT): integer weights become real ones, fake-quantized when they are read.

A QuantizeLinear that reads the real weights is put before their DequantizeLinear. Gradients pass through both
(`onnxprune.operators.quantized`), and steps too small to change an integer add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.model.graph import GraphIndex, attribute, with_inputs, with_nodes
from onnxprune.model.tensors import Weights, weights, with_weights

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
    before = weights(proto)
    nodes, initializers = list[NodeProto](), {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        reads = node.input[0] if node.input and node.op_type == "DequantizeLinear" else ""
        nodes += _fake_quantized(node, initializers, before) if reads in readers else [node]
    for name, reader in readers.items():
        scale, zero, _ = _parameters(before, reader)
        initializers[name] = numpy_helper.from_array((before[name].astype(np.float32) - zero) * scale, name)
    return with_nodes(proto, nodes, initializers.values())


def _fake_quantized(reader: NodeProto, initializers: dict[str, TensorProto], stored: Weights) -> list[NodeProto]:
    """Return the nodes that replace a DequantizeLinear once its weight is real; add an initializer if they need one."""
    name, scale = reader.input[:2]
    dtype = stored.dtype(name)
    if dtype == _BIAS:
        return [helper.make_node("Identity", [name], reader.output, name=reader.name)]
    zero = reader.input[2] if len(reader.input) > 2 else ""
    if not zero:  # QuantizeLinear takes its type from it
        zero = f"{reader.name}:zero"
        initializers[zero] = numpy_helper.from_array(np.zeros(stored.shape(scale), dtype), zero)
    between = f"{reader.name}:rounded"
    quantize = helper.make_node("QuantizeLinear", [name, scale, zero], [between], name=between)
    quantize.attribute.extend(a for a in reader.attribute if a.name == "axis")
    return [quantize, with_inputs(reader, [between, *reader.input[1:]])]


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
    stored, found = weights(proto), {}
    for name, (first, *others) in GraphIndex(proto.graph).readers.items():
        if name not in stored or stored.dtype(name) not in (*_QUANTIZED, _BIAS):
            continue
        alike = all(
            n.op_type == "DequantizeLinear"
            and n.domain in _DOMAINS
            and n.input[0] == name
            and n.input == first.input
            and not attribute(n, "block_size", 0)
            for n in (first, *others)
        )
        if alike and all(p in stored for p in first.input[1:] if p):
            found[name] = first
    return found


def _parameters(stored: Weights, reader: NodeProto) -> tuple[NDArray[Any], NDArray[Any], np.dtype[Any]]:
    """Return the scale and zero point of a DequantizeLinear, broadcastable to its weight, and the weight's type."""
    rank = len(stored.shape(reader.input[0]))
    axis = attribute(reader, "axis", 1)
    scale = stored[reader.input[1]].astype(np.float32)
    given = len(reader.input) > 2 and reader.input[2]
    zero = stored[reader.input[2]].astype(np.float32) if given else np.zeros_like(scale)
    shape = [-1 if a == axis % max(rank, 1) else 1 for a in range(rank)] if scale.size > 1 else []
    return scale.reshape(shape), zero.reshape(shape), stored.dtype(reader.input[0])
