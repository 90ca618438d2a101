"""Biases of an INT8 model that make up for what rounding does to the mean of each output channel.

Rounding errors of weights don't average out over a layer's inputs, which are mostly positive: each channel's mean
shifts, and shifts add up through the network. M. Nagel et al., "Data-free quantization through weight equalization and
bias correction", ICCV 2019, section 4.2, with means measured on samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.model.graph import GraphIndex
from onnxprune.model.stream import Batches, Inputs, Stream

_SAMPLES = 128  # that means are taken over, at least


def correct_biases(model: ModelProto, prepared: ModelProto, batches: Batches) -> int:
    """Change the biases of a model of QuantizeLinear and DequantizeLinear nodes in place, layer by layer.

    Args:
        model: what `static` returns, in topological order.
        prepared: what it was made of. Nodes have the same names there.
        batches: returns inputs; the same ones at each call.

    Returns:
        The number of layers whose biases were changed: those with a bias of their own.

    Raises:
        ModelError: ONNX Runtime can't run a part of a model (OP122).
    """
    index, source = GraphIndex(model.graph), GraphIndex(prepared.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    running = ModelProto()  # with biases of real numbers: a node that makes one runs before the layer, and only once
    running.CopyFrom(model)
    now, then, count = Stream(running, lambda: _some(batches)), Stream(prepared, lambda: _some(batches)), 0
    for node, own in zip(model.graph.node, running.graph.node, strict=True):
        parts = _bias(node, index, stored)
        if parts is None or node.name not in source.positions or index.uses[parts[0].name] > 1:
            continue
        bias, scale = parts[0], numpy_helper.to_array(parts[1]).astype(np.float64)
        steps = numpy_helper.to_array(bias).astype(np.float64)
        own.input[2] = f"{bias.name}/corrected"
        real = running.graph.initializer.add()
        real.CopyFrom(numpy_helper.from_array((steps * scale).astype(np.float32), own.input[2]))
        now.advance(index.positions[node.name])
        then.advance(source.positions[node.name])
        missing = _missing(now, then, node.output[0], prepared.graph.node[source.positions[node.name]].output[0])
        moved = np.round(steps + missing / scale)
        if np.abs(moved).max() < np.iinfo(np.int32).max:  # not if anything isn't finite
            bias.CopyFrom(numpy_helper.from_array(moved.astype(np.int32), bias.name))
            real.CopyFrom(numpy_helper.from_array((moved * scale).astype(np.float32), real.name))
            count += 1
    return count


def _some(batches: Batches) -> Iterable[Inputs]:
    count = 0
    for batch in batches():
        if count >= _SAMPLES:
            return
        count += max((len(array) for array in batch.values() if array.ndim), default=1)
        yield batch


def _missing(now: Stream, then: Stream, mine: str, its: str) -> np.ndarray:
    """Return what each channel of a layer's output lacks of its mean, shape (channels,)."""
    total, samples = np.zeros(1), 0
    for have, goal in zip(now.tensors([mine]), then.tensors([its]), strict=True):
        error = (goal[its].astype(np.float64) - have[mine]).sum(axis=0)
        total = total + error.reshape(len(error), -1).mean(axis=1)
        samples += len(goal[its])
    return total / max(samples, 1)


def _bias(
    node: NodeProto, index: GraphIndex, stored: Mapping[str, TensorProto]
) -> tuple[TensorProto, TensorProto] | None:
    """Return the whole numbers of a layer's bias and their scale; None if it has no such bias."""
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
        return None
    maker = index.makers.get(node.input[2])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    bias, scale = (stored.get(name) for name in maker.input[:2])
    whole = bias is not None and bias.data_type == TensorProto.INT32 and len(bias.dims) == 1
    return (bias, scale) if whole and bias is not None and scale is not None else None
