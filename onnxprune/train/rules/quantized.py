"""Quantization: gradients pass straight through the rounding, where it doesn't saturate.

Y. Bengio, N. Léonard and A. Courville, "Estimating or propagating gradients through stochastic neurons for
conditional computation" (2013); B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import gradient


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
def quantize(op: GradientNode, dy: Tensor) -> Tensor:
    """Of round(x / scale) + zero: dy / scale, zero where the result would lie beyond its range."""
    limits, scale = np.iinfo(helper.tensor_dtype_to_np_dtype(op.y().dtype)), _along(op, 1)
    real = op.x() / scale
    if op.has(2):
        real = real + _along(op, 2).cast(real.dtype)
    inside = (real > limits.min - 0.5) & (real < limits.max + 0.5)
    return inside.where(dy / scale, 0.0)


@gradient("DequantizeLinear")
def dequantize(op: GradientNode, dy: Tensor) -> Tensor:
    """Of (q - zero) scale: dy scale."""
    return dy * _along(op, 1)
