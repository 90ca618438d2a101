"""Convolutions: trace, rewrite, gradients and linear view of every kind.

Each gradient is written in the way that ONNX Runtime's CPU provider is fastest at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from onnxprune.channels.values import Shape
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import describe, gradient, leave, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.linear import ConvolutionLayer, TransposedLayer
from onnxprune.operators.node import Node
from onnxprune.operators.quantized import per_channel
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode
from onnxprune.operators.window import Window

_LARGE = 256  # positions of a map

describe("Conv", factors=(0, 1), weights=(1, 2), linear=ConvolutionLayer.of)
describe("com.microsoft:FusedConv", factors=(0, 1), weights=(1, 2))
describe("ConvTranspose", factors=(0, 1), weights=(1, 2), linear=TransposedLayer.of)
describe("DeformConv", factors=(0, 1), weights=(1, 3))
describe("CausalConvWithState", "com.microsoft:CausalConvWithState", factors=(0, 1), weights=(1, 2))
describe("ConvInteger", factors=(0, 1), zero_points=((0, 2, 0), (1, 3, 0)))
describe("QLinearConv", "com.microsoft:QLinearConv", factors=(0, 3), zero_points=((0, 2, 0), (3, 5, 0)))
without("linear", "an activation is fused into it", "com.microsoft:FusedConv")
without("linear", "it reads positions that are only known at run time", "DeformConv")
without("linear", "it carries inputs over from one run to the next", "CausalConvWithState")
without("linear", "it carries inputs over from one run to the next", "com.microsoft:CausalConvWithState")
without("gradient", "it carries inputs over from one run to the next", "com.microsoft:CausalConvWithState")
without("linear", "its weights are integers", "ConvInteger", "QLinearConv", "com.microsoft:QLinearConv")
without("gradient", "ONNX Runtime's fused form has no gradient: save the model unoptimized", "com.microsoft:FusedConv")
without("gradient", "its sampling positions have no gradient rule", "DeformConv")
without("gradient", "its weights are integers", "ConvInteger", "QLinearConv", "com.microsoft:QLinearConv")


@traces("Conv")
def conv(op: TraceNode) -> None:
    """A convolution: input channels meet the weight's, output channels are the weight's, group by group.

    One of a single position, which mixes no neighbors, leaves the other axes as they are.
    """
    single = set(op.shape(1)[2:]) | set(op.attr("strides", [1])) == {1} and op.shape(0)[2:] == op.out_shape()[2:]
    convolve(op, f"n (g i) *s, g o i *k, (g o) -> n (g o) {'*s' if single else '*t'}")


def convolve(op: TraceNode, spec: str, weight: int = 1, axis: int = 1) -> None:
    """Apply the spec of a convolution whose weight, one of the inputs, has its groups in an axis of their own.

    The channels of data are on ``axis``.

    Every group drops its own channels, as many as the others; or whole groups leave, always where a group has a single
    channel on either side.
    """
    groups = op.attr("group", 1)
    operands = [op.x(i) if op.has(i) else None for i in range(len(op.node.input))]
    per_group = (op.shape(0)[axis] // groups, op.out_shape()[axis] // groups)
    whole = groups > 1 and (op.grouped == "groups" or 1 in per_group)
    operands[weight] = op.in_groups(weight, groups, whole=whole)
    if whole:
        op.align(spec, operands, structure={"i", "o"}, g=groups)
    else:
        op.align(spec, operands, balanced={"g"}, g=groups)


@rewrites("Conv", "ConvInteger", "DeformConv", "com.microsoft:FusedConv")
def conv_groups(edit: RewriteNode) -> None:
    """Groups that lose channels in equal number stay; depthwise groups leave with their channel."""
    if edit.attr("group", 1) > 1:
        edit.set_attr("group", edit.new_shape(0)[1] // edit.new_shape(1)[1])


@gradient("Conv")
def conv_input(op: GradientNode, dy: Tensor) -> Tensor:
    """Each output position gives to its window, by the same weights."""
    x, w, group = op.x(), op.x(1), op.attr("group", 1)
    window = Window.of(op, op.x().shape[2:], w.shape[2:], dy.shape[2:])
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
    window = Window.of(op, op.x().shape[2:], w.shape[2:], dy.shape[2:])
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


@traces("ConvTranspose")
def conv_transpose(op: TraceNode) -> None:
    """A transposed convolution: the weight holds input channels first."""
    convolve(op, "n (g i) *s, g i o *k, (g o) -> n (g o) *t")


@rewrites("ConvTranspose")
def conv_transpose_groups(edit: RewriteNode) -> None:
    """As for Conv; the weight's second axis is the output channels of one group."""
    if edit.attr("group", 1) > 1:
        edit.set_attr("group", edit.new_out_shape(0)[1] // edit.new_shape(1)[1])


def _input_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Each input position gives to its window, where a convolution's output position takes from one."""
    return prod(x[0]) * prod(x[1][1:])


describe("ConvTranspose", macs=_input_macs)


def _transposed_window(op: GradientNode, dy: Tensor) -> Window:
    """Return the window of the convolution from dY's positions to X's that the node is the transpose of."""
    return Window.of_transposed(op, op.x().shape[2:], op.x(1).shape[2:], dy.shape[2:])


@gradient("ConvTranspose")
def transposed_input(op: GradientNode, dy: Tensor) -> Tensor:
    """The convolution that it is the transpose of."""
    window, group = _transposed_window(op, dy), op.attr("group", 1)
    return window.pad(dy).op(
        "Conv", op.x(1), group=group, strides=list(window.strides), dilations=list(window.dilations)
    )


@gradient("ConvTranspose", of=1)
def transposed_weight(op: GradientNode, dy: Tensor) -> Tensor:
    """As for a convolution, its input and dY exchanged."""
    return _correlate(dy, op.x(), op.x(1).shape, _transposed_window(op, dy), op.attr("group", 1))


@traces("CausalConvWithState")
def causal_conv(op: TraceNode) -> None:
    """A depthwise convolution over time whose last inputs are carried along."""
    op.align("n c *s, c i *k, c, n c *p -> n c *s, n c *p")


@traces("com.microsoft:CausalConvWithState")
def causal_conv_contrib(op: TraceNode) -> None:
    """As the standard's, channels first or last; further states and pieces of channels are left alone."""
    extra = any(op.has(i) for i in range(4, len(op.node.input))) or len(op.node.output) > 2
    if extra or any(op.attr(name, 0) for name in ("channels_last", "state_channels_last", "input_channels")):
        op.give_up("OP211", "further states, pieces of channels and channels in the last axis are left alone")
        return
    op.align("n c *s, c i *k, c, n c *p -> n c *s, n c *p")


@traces("DeformConv")
def deform_conv(op: TraceNode) -> None:
    """A convolution at positions that are given at run time, the same for all channels."""
    if op.attr("offset_group", 1) > 1:
        op.give_up("OP211", "groups of channels with positions of their own are left alone")
        return
    convolve(op, "n (g i) *s, g o i *k, n *q, (g o), n *r -> n (g o) *t")


@traces("com.microsoft:FusedConv")
def fused_conv(op: TraceNode) -> None:
    """A convolution, perhaps a sum, and an activation."""
    convolve(op, "n (g i) *s, g o i *k, (g o), n (g o) *t -> n (g o) *t")


leave("channels-last convolutions of the runtime are left alone", "com.microsoft:NhwcFusedConv")


@traces("ConvInteger")
def conv_integer(op: TraceNode) -> None:
    """As Conv, with zero points."""
    convolve(op, f"n (g i) *s, g o i *k, {per_channel(op, 2, 'u')}, {per_channel(op, 3, '(g o)')} -> n (g o) *t")


@traces("QLinearConv", "com.microsoft:QLinearConv")
def qlinear_conv(op: TraceNode) -> None:
    """As Conv; the weight's scale and zero point are one for all or one for each output channel.

    ONNX Runtime's own may have its channels last.
    """
    last = bool(op.attr("channels_last", 0))
    x, y = ("n *s (g i)", "n *t (g o)") if last else ("n (g i) *s", "n (g o) *t")
    w_scale, w_zero = (per_channel(op, i, "(g o)") for i in (4, 5))
    convolve(
        op,
        f"{x}, {per_channel(op, 1, 'u')}, {per_channel(op, 2, 'u')}, g o i *k, {w_scale}, {w_zero},"
        f" {per_channel(op, 6, 'u')}, {per_channel(op, 7, 'u')}, (g o) -> {y}",
        weight=3,
        axis=-1 if last else 1,
    )


@rewrites("QLinearConv", "com.microsoft:QLinearConv")
def qlinear_conv_groups(edit: RewriteNode) -> None:
    """As for Conv."""
    if edit.attr("group", 1) > 1:
        channels = edit.new_shape(0)[-1 if edit.attr("channels_last", 0) else 1]
        edit.set_attr("group", channels // edit.new_shape(3)[1])
