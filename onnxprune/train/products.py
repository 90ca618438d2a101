"""Sums of products per channel, of which the gradients of scales and of depthwise kernels are made."""

from __future__ import annotations

from math import prod

from onnxprune.model.tape import Tensor

_LARGE = 256  # positions of a map


def dot_channels(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums of products of each channel, shape (channels,).

    On large maps by convolutions of one position, which don't write the products down.

    Args:
        a: shape (samples, channels, ...).
        b: the same shape.
    """
    n, channels, *size = a.shape
    positions = prod(size)
    if positions < _LARGE:
        return (a * b).sum([axis for axis in range(a.rank) if axis != 1], keep=False)
    images, kernels = a.reshape((1, n * channels, positions)), b.reshape((n * channels, 1, positions))
    return images.op("Conv", kernels, group=n * channels).reshape((n, channels)).sum([0], keep=False)
