"""Quantization: scales and zero points are sliced along with what they scale."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxprune.model.tape import Tensor
from onnxprune.operators.card import INTEGER, describe, gradient, leave, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.traced import TraceNode

describe("DequantizeLinear com.microsoft:DequantizeLinear", zero_points=((0, 2, 1),))
describe("QuantizeLinear", quantizes=True)
without("gradient", INTEGER, "com.microsoft:DequantizeLinear com.microsoft:QuantizeLinear")
leave(
    "its weights are packed",
    "com.microsoft:MatMulBnb4 com.microsoft:MatMulFpQ4 com.microsoft:QOrderedAttention com.microsoft:QOrderedMatMul",
)


@traces("DequantizeLinear QuantizeLinear com.microsoft:DequantizeLinear com.microsoft:QuantizeLinear")
def quantize(op: TraceNode) -> None:
    """One scale for all, one for each position of the axis, or one for each block of positions."""
    names, scale = op.names(), op.shape(1)
    axis = op.axis(1)
    blocked = len(scale) == len(names) > 0 and op.attr("block_size", 0)
    data = " ".join(f"(b {n})" if blocked and i == axis else n for i, n in enumerate(names))
    if blocked:
        scales = [" ".join("b" if i == axis else n for i, n in enumerate(names))] * 2
    else:
        scales = [per_channel(op, i, names[axis] if names else "u") for i in (1, 2)]
    op.align(f"{data}, {', '.join(scales)} -> {data}", b=scale[axis] if blocked else 1)


def per_channel(op: TraceNode, i: int, axis: str) -> str:
    """Return the spec of a scale or zero point: nothing for a scalar, an axis for one value per channel."""
    shape = op.shape(i) if op.has(i) else ()
    return "" if not shape else (axis if shape[0] > 1 else "u")


def _along(op: GradientNode, index: int) -> Tensor:
    """Return the scale or the zero point in a shape that broadcasts to the data's."""
    x, values = op.x(), op.x(index)
    if op.attr("block_size", 0):
        raise NotImplementedError("it quantizes in blocks")
    if values.size == 1:
        return values.reshape(())
    axis = op.axis(1)
    return values.reshape([-1 if a == axis else 1 for a in range(x.rank)])


@gradient("QuantizeLinear")
def quantize_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of round(x / scale) + zero: dy / scale, zero where the result is clamped to its range."""
    limits, scale = np.iinfo(helper.tensor_dtype_to_np_dtype(op.y().dtype)), _along(op, 1)
    real = op.x() / scale
    if op.has(2):
        real = real + _along(op, 2).cast(real.dtype)
    inside = (real > limits.min - 0.5) & (real < limits.max + 0.5)
    return inside.where(dy / scale, 0.0)


gradient("DequantizeLinear")(lambda op, dy: dy * _along(op, 1))


@traces("DynamicQuantizeLinear")
def dynamic_quantize(op: TraceNode) -> None:
    """One scale for all, from the smallest and largest value."""
    op.approximate(op.x(0), range(len(op.shape(0))), "its scale is taken over these channels")
    op.align("*a -> *a, , ")
