"""Convolutions. Each gradient is written in the way that ONNX Runtime's CPU provider is fastest at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from onnxprune.model.tape import Shape, Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.window import Window
from onnxprune.train.products import dot_channels
from onnxprune.train.registry import gradient


@gradient("Conv")
def conv_input(op: GradientNode, dy: Tensor) -> Tensor:
    """Each output position gives to its window, by the same weights."""
    x, w, group = op.x(), op.x(1), op.attr("group", 1)
    window = Window.of(op, w.shape[2:], dy.shape[2:])
    if window.plain and group == 1:
        rows = w.reshape(w.shape[:2]).mT @ dy.reshape((*dy.shape[:2], -1))
        return rows.reshape(x.shape)
    if set(window.strides) == {1}:
        return _full(dy, w, window, group)
    return window.spread(dy, w, group)


def _full(dy: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """At stride one, a convolution of dY with the weights turned round and their channels exchanged."""
    pads = [r - 1 - b for r, b in zip(window.reach, window.before, strict=True)]
    ends = [r - 1 - a for r, a in zip(window.reach, window.after, strict=True)]
    if min(*pads, *ends) < 0:
        return window.spread(dy, w, group)
    turned = _turned(_exchanged(w, group))
    return dy.op("Conv", turned, group=group, dilations=list(window.dilations), pads=[*pads, *ends])


def _exchanged(w: Tensor, group: int) -> Tensor:
    """Exchange the input and output channels of each group's weights."""
    outputs, inputs, *kernel = w.shape
    apart = w.reshape((group, outputs // group, inputs, *kernel))
    rest = range(3, apart.rank)
    return apart.transpose([0, 2, 1, *rest]).reshape((group * inputs, outputs // group, *kernel))


def _turned(w: Tensor) -> Tensor:
    """Turn a kernel round: its taps in reverse order, by a product with the permutation, faster than a Slice."""
    taps = prod(w.shape[2:])
    if taps == 1:
        return w
    return (w.reshape((-1, taps)) @ w.like(np.eye(taps)[::-1])).reshape(w.shape)


@gradient("Conv", of=1)
def conv_weight(op: GradientNode, dy: Tensor) -> Tensor:
    """For each position of the kernel, the product of dY with what the windows have there."""
    w, group = op.x(1), op.attr("group", 1)
    window = Window.of(op, w.shape[2:], dy.shape[2:])
    return _correlate(op.x(), dy, w.shape, window, group)


@gradient("Conv", of=2)
@gradient("ConvTranspose", of=2)
def conv_bias(op: GradientNode, dy: Tensor) -> Tensor:
    """Summed per channel."""
    return dy.sum([a for a in range(dy.rank) if a != 1], keep=False)


def _correlate(x: Tensor, dy: Tensor, shape: Shape, window: Window, group: int) -> Tensor:
    """Return the gradient of a convolution's weights of a shape, from its input and dY."""
    outputs, inputs = shape[0] // group, shape[1]
    if inputs == outputs == 1:
        return _depthwise(x, dy, shape, window)
    taps = _by_samples if prod(window.out) * (outputs + inputs) > outputs * inputs else _over_samples
    found = [tap.reshape((1, group, outputs, inputs)) for tap in taps(x, dy, window, group)]
    stacked = x.tape.emit("Concat", *found, axis=0) if len(found) > 1 else found[0]
    return stacked.transpose([1, 2, 3, 0]).reshape(shape)


def _by_samples(x: Tensor, dy: Tensor, window: Window, group: int) -> Iterator[Tensor]:
    """Yield the gradient of each tap: products of samples, summed, where they are smaller than the maps."""

    def rows(maps: Tensor) -> Tensor:
        n, channels = maps.shape[:2]
        return maps.reshape((n, channels, -1) if group == 1 else (n, group, channels // group, -1))

    flat, padded = rows(dy), window.pad(x)
    for position in product(*map(range, window.kernel)):
        yield (flat @ rows(window.tap(padded, position)).mT).sum([0])


def _over_samples(x: Tensor, dy: Tensor, window: Window, group: int) -> Iterator[Tensor]:
    """Yield the gradient of each tap: channels last, one product over samples and positions."""
    last = [0, *range(2, x.rank), 1]
    padded = window.pad(x).transpose(last)
    rows = _grouped(dy.transpose(last), group)
    for position in product(*map(range, window.kernel)):
        columns = _grouped(window.tap(padded, position, first=1), group)
        yield rows.op("Gemm", columns, transA=1) if group == 1 else rows.mT @ columns


def _grouped(x: Tensor, group: int) -> Tensor:
    """Return rows of channels, (groups,) samples and positions, channels of a group."""
    channels = x.shape[-1]
    if group == 1:
        return x.reshape((-1, channels))
    return x.reshape((-1, group, channels // group)).transpose([1, 0, 2])


def _depthwise(x: Tensor, dy: Tensor, shape: Shape, window: Window) -> Tensor:
    """Every channel by itself: for each tap of the kernel, the sum of dY times what the windows have there."""
    padded = window.pad(x)
    if set(window.strides) != {1}:
        return _by_kernels_of(dy, padded, shape, window)
    taps = [window.tap(padded, position) for position in product(*map(range, window.kernel))]
    sums = [dot_channels(tap, dy).reshape((-1, 1)) for tap in taps]
    return x.tape.emit("Concat", *sums, axis=1).reshape(shape)


def _by_kernels_of(dy: Tensor, padded: Tensor, shape: Shape, window: Window) -> Tensor:
    """The same as a convolution with dY for kernels, its steps and dilations exchanged: faster at larger strides."""
    n, channels = dy.shape[:2]
    images = padded.reshape((1, n * channels, *padded.shape[2:]))
    kernels = dy.reshape((n * channels, 1, *dy.shape[2:]))
    steps = {"strides": list(window.dilations), "dilations": list(window.strides)}
    return images.op("Conv", kernels, group=n * channels, **steps).reshape((n, *shape)).sum([0], keep=False)


@gradient("ConvTranspose")
def transposed_input(op: GradientNode, dy: Tensor) -> Tensor:
    """The convolution that it is the transpose of."""
    window, group = _transposed(op, dy), op.attr("group", 1)
    return window.pad(dy).op(
        "Conv", op.x(1), group=group, strides=list(window.strides), dilations=list(window.dilations)
    )


@gradient("ConvTranspose", of=1)
def transposed_weight(op: GradientNode, dy: Tensor) -> Tensor:
    """As for a convolution, its input and dY exchanged."""
    return _correlate(dy, op.x(), op.x(1).shape, _transposed(op, dy), op.attr("group", 1))


def _transposed(op: GradientNode, dy: Tensor) -> Window:
    """Return the window of the convolution from dY's positions to X's that the node is the transpose of."""
    kernel, size, out = op.x(1).shape[2:], dy.shape[2:], op.x().shape[2:]
    rank = len(size)
    strides = tuple(op.attr("strides") or [1] * rank)
    dilations = tuple(op.attr("dilations") or [1] * rank)
    extra = op.attr("output_padding") or [0] * rank
    auto = op.attr("auto_pad", "NOTSET")
    spans = zip(strides, out, dilations, kernel, extra, size, strict=True)
    total = [s * (o - 1) + d * (k - 1) + 1 + e - n for s, o, d, k, e, n in spans]
    if auto == "NOTSET" and op.attr("output_shape") is None:
        before = tuple(op.attr("pads") or [0] * rank)[:rank]
    else:
        before = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    return Window(tuple(kernel), strides, dilations, before, tuple(size), tuple(out))
