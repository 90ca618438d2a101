"""Pooling."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxprune.model.tape import INT64, Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.window import Window
from onnxprune.train.registry import gradient


@gradient("MaxPool")
def max_pool(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each value to where the largest was found."""
    if op.attr("storage_order", 0):
        raise NotImplementedError("its storage_order is 1")
    where = op.added_output(1, dy.shape, INT64)
    return op.x().reshape((-1,)).zeros().scatter_add(where.reshape((-1,)), dy.reshape((-1,)), 0).reshape(op.x().shape)


@gradient("AveragePool")
def average_pool(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread each value over its window in equal shares."""
    window = Window.of(op, op.attr("kernel_shape"), dy.shape[2:])
    counts = _counts(op, window)
    shares = dy * (1 / counts).astype(np.float32)
    return _spread(shares, window)


@gradient("LpPool")
def lp_pool(op: GradientNode, dy: Tensor) -> Tensor:
    """Of the norm of a window by its elements: sign(x) (|x| / norm)^(p-1)."""
    p = op.attr("p", 2)
    window = Window.of(op, op.attr("kernel_shape"), dy.shape[2:])
    return _spread((op.y() > 0).where(dy * op.y() ** (1.0 - p), 0.0), window) * _signed_power(op.x(), p - 1)


def _spread(shares: Tensor, window: Window) -> Tensor:
    channels = shares.shape[1]
    ones = shares.like(np.ones((channels, 1, *window.kernel)))
    return window.spread(shares, ones, channels)


def _counts(op: GradientNode, window: Window) -> NDArray[np.float64]:
    """Return how many positions each window averages over."""
    before = list(window.before)
    declared = list(op.attr("pads") or [0] * 2 * len(before))[len(before) :]
    inside = np.ones(window.size)
    if op.attr("count_include_pad", 0):
        automatic = op.attr("auto_pad", "NOTSET") != "NOTSET"
        padding = [max(a, 0) for a in window.after] if automatic else declared
        inside = np.pad(inside, list(zip(before, padding, strict=True)), constant_values=1)
        after = [a - p for a, p in zip(window.after, padding, strict=True)]
        before = [0] * len(before)
    else:
        after = list(window.after)
    padded = np.pad(inside, [(b, max(a, 0)) for b, a in zip(before, after, strict=True)])
    views = sliding_window_view(padded, window.reach)
    step = tuple(slice(None, s * (o - 1) + 1, s) for s, o in zip(window.strides, window.out, strict=True))
    taps = tuple(slice(None, None, d) for d in window.dilations)
    counts: NDArray[np.float64] = views[(*step, *taps)].sum(axis=tuple(range(-len(step), 0)))
    return counts


def _signed_power(x: Tensor, p: float) -> Tensor:
    return x if p == 1 else x.op("Sign") * x.op("Abs") ** float(p)


@gradient("GlobalAveragePool")
def global_average(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread in equal shares."""
    return (dy * (1 / prod(op.x().shape[2:]))).expand(op.x().shape)


@gradient("GlobalMaxPool")
def global_max(op: GradientNode, dy: Tensor) -> Tensor:
    """Share among the positions that are the largest."""
    chosen = op.x().equals(op.y()).cast(dy.dtype)
    return chosen * (dy / chosen.sum(range(2, dy.rank)))


@gradient("GlobalLpPool")
def global_lp(op: GradientNode, dy: Tensor) -> Tensor:
    """Of the norm of all positions by one: sign(x) (|x| / norm)^(p-1)."""
    p = op.attr("p", 2)
    return (op.y() > 0).where(dy * op.y() ** (1.0 - p), 0.0) * _signed_power(op.x(), p - 1)
