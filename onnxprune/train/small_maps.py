"""Depthwise convolutions of small maps, as a matrix product for every channel.

ONNX Runtime's CPU provider takes every channel of every sample by itself, which on small maps is mostly overhead. One
product over all samples is several times faster in both directions: the gradients are those of the product.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.train.op import Op
from onnxprune.train.tensor import Tensor
from onnxprune.train.window import Window

_LARGEST = 64 * 64  # pairs of an input and an output position


def is_small(op: Op) -> bool:
    """Tell whether a node is a depthwise convolution of maps so small that it is written as a product."""
    if op.node.op_type != "Conv":
        return False
    x, w = op.x(), op.x(1)
    depthwise = w.shape[1] == 1 and w.shape[0] == op.attr("group", 1) == x.shape[1] > 1
    return depthwise and prod(x.shape[2:]) * prod(op.y().shape[2:]) <= _LARGEST


def as_product(op: Op) -> Tensor:
    """Append the product of a channel's maps with a matrix that holds its kernel at every place, and many zeros."""
    x, w, shape = op.x(0), op.x(1), op.y().shape
    window = Window.of(op, w.shape[2:], shape[2:])
    n, channels = shape[:2]
    size, out = prod(window.size), prod(window.out)
    matrices = w.reshape((channels, -1)) @ x.like(_places(window))
    rows = x.reshape((n, channels, size)).transpose([1, 0, 2])
    found = (rows @ matrices.reshape((channels, size, out))).transpose([1, 0, 2]).reshape(shape)
    return found + op.x(2).reshape((1, -1, *[1] * (found.rank - 2))) if op.has(2) else found


def _places(window: Window) -> NDArray[np.float32]:
    """Return where each tap of the kernel meets input and output positions, [taps, inputs * outputs]."""
    found = np.zeros((*window.kernel, *window.size, *window.out), np.float32)
    axes = list(zip(window.before, window.strides, window.dilations, window.size, strict=True))
    for tap in product(*map(range, window.kernel)):
        for out in product(*map(range, window.out)):
            at = [s * o + d * t - b for (b, s, d, _), o, t in zip(axes, out, tap, strict=True)]
            if all(0 <= a < size for a, (_, _, _, size) in zip(at, axes, strict=True)):
                found[(*tap, *at, *out)] = 1
    return found.reshape(prod(window.kernel), -1)
