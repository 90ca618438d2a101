"""Quantisation: gradients pass straight through the rounding, where it doesn't saturate.

Y. Bengio, N. Léonard and A. Courville, "Estimating or propagating gradients through stochastic neurons for
conditional computation" (2013); B. Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", CVPR 2018.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxprune.train.op import Op
from onnxprune.train.registry import gradient
from onnxprune.train.tensor import Tensor


def _scale(op: Op) -> Tensor:
    """Return the scale in a shape that broadcasts to the data's."""
    x, scale = op.x(), op.x(1)
    if op.attr("block_size", 0):
        raise NotImplementedError("it quantises in blocks")
    if scale.size == 1:
        return scale.reshape(())
    axis = op.axis(1)
    return scale.reshape([-1 if a == axis else 1 for a in range(x.rank)])


@gradient("QuantizeLinear")
def quantize(op: Op, dy: Tensor) -> Tensor:
    """Of round(x / scale): dy / scale, zero where the result is at an end of its range."""
    y = op.y()
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(y.dtype))
    whole = y.cast(op.x().dtype)
    inside = (whole > float(limits.min)) & (whole < float(limits.max))
    return inside.where(dy / _scale(op), 0.0)


@gradient("DequantizeLinear")
def dequantize(op: Op, dy: Tensor) -> Tensor:
    """Of (q - zero) scale: dy scale."""
    return dy * _scale(op)
