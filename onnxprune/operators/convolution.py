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
from onnxprune.operators.card import ACTIVATED, FUSED, INTEGERS, describe, gradient, leave, rewrites, traces
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.linear import ConvolutionLayer, TransposedLayer
from onnxprune.operators.node import Node
from onnxprune.operators.quantized import per_channel
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode
from onnxprune.operators.window import Window

_LARGE = 256  # positions of a map

describe("Conv", factors=(0, 1), weights=(1, 2), linear=ConvolutionLayer.of)


@traces("Conv")
def conv(op: TraceNode) -> None:
    """A convolution: input channels meet the weight's, output channels are the weight's, group by group.

    A kernel of one position doesn't mix neighbors, so the other axes keep their ids.
    """
    single = set(op.shape(1)[2:]) | set(op.attr("strides", [1])) == {1} and op.shape(0)[2:] == op.out_shape()[2:]
    convolve(op, f"n (g i) *s, g o i *k, (g o) -> n (g o) {'*s' if single else '*t'}")


def convolve(op: TraceNode, spec: str, weight: int = 1, axis: int = 1) -> None:
    """Apply the spec of a convolution whose weight has its groups on a separate axis.

    Every group drops its own channels, the same number in each; or whole groups leave, always where a group has a
    single channel on either side.

    Args:
        op: the node.
        spec: the spec.
        weight: the input that is the weight.
        axis: the axis of the data's channels.
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


@rewrites("Conv ConvInteger ConvTranspose DeformConv QLinearConv com.microsoft:FusedConv com.microsoft:QLinearConv")
def conv_groups(edit: RewriteNode) -> None:
    """Groups that lose channels in equal number stay; depthwise groups leave with their channel."""
    transposed, quantized = edit.node.op_type == "ConvTranspose", edit.node.op_type == "QLinearConv"
    if edit.attr("group", 1) > 1:
        data = edit.new_out_shape(0) if transposed else edit.new_shape(0)
        weight = edit.new_shape(3 if quantized else 1)  # its second axis holds the channels of one group
        edit.set_attr("group", data[-1 if edit.attr("channels_last", 0) else 1] // weight[1])


@gradient("Conv")
def conv_input(op: GradientNode, dy: Tensor) -> Tensor:
    """Distribute each output position over its window, by the same weights."""
    x, w, group = op.x(), op.x(1), op.attr("group", 1)
    window = Window.of(op, op.x().shape[2:], w.shape[2:], dy.shape[2:])
    if window.plain and group == 1:
        rows = w.reshape(w.shape[:2]).mT @ dy.reshape((*dy.shape[:2], -1))
        return rows.reshape(x.shape)
    if set(window.strides) == {1}:
        return _full(dy, w, window, group)
    return window.spread(dy, w, group)


def _full(dy: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """At stride one, convolve dY with the flipped kernel, its input and output channels exchanged."""
    pads = [r - 1 - b for r, b in zip(window.reach, window.before, strict=True)]
    ends = [r - 1 - a for r, a in zip(window.reach, window.after, strict=True)]
    if min(*pads, *ends) < 0:
        return window.spread(dy, w, group)
    flipped = _flipped(_exchanged(w, group))
    return dy.op("Conv", flipped, group=group, dilations=list(window.dilations), pads=[*pads, *ends])


def _exchanged(w: Tensor, group: int) -> Tensor:
    """Exchange the input and output channels of each group's weights."""
    outputs, inputs, *kernel = w.shape
    apart = w.reshape((group, outputs // group, inputs, *kernel))
    rest = range(3, apart.rank)
    return apart.transpose([0, 2, 1, *rest]).reshape((group * inputs, outputs // group, *kernel))


def _flipped(w: Tensor) -> Tensor:
    """Reverse the order of a kernel's taps, by a product with the permutation, which is faster than a Slice."""
    taps = prod(w.shape[2:])
    if taps == 1:
        return w
    return (w.reshape((-1, taps)) @ w.like(np.eye(taps)[::-1])).reshape(w.shape)


@gradient("Conv", of=1)
def conv_weight(op: GradientNode, dy: Tensor) -> Tensor:
    """For each tap of the kernel, the product of dY with the inputs the windows have there."""
    w, group = op.x(1), op.attr("group", 1)
    window = Window.of(op, op.x().shape[2:], w.shape[2:], dy.shape[2:])
    return _correlate(op.x(), dy, w.shape, window, group)


gradient("Conv ConvTranspose", of=2)(lambda op, dy: sum_channels(dy))


def sum_channels(x: Tensor) -> Tensor:
    """Return the sum over each channel, shape (channels,)."""
    return x.sum([axis for axis in range(x.rank) if axis != 1], keep=False)


def _correlate(x: Tensor, dy: Tensor, shape: Shape, window: Window, group: int) -> Tensor:
    """Return the gradient of a convolution's weight of a given shape, from its input and dY."""
    outputs, inputs = shape[0] // group, shape[1]
    if inputs == outputs == 1:
        return _depthwise(x, dy, shape, window)
    taps = _by_samples if prod(window.out) * (outputs + inputs) > outputs * inputs else _over_samples
    found = [tap.reshape((1, group, outputs, inputs)) for tap in taps(x, dy, window, group)]
    stacked = x.tape.emit("Concat", *found, axis=0) if len(found) > 1 else found[0]
    return stacked.transpose([1, 2, 3, 0]).reshape(shape)


def _by_samples(x: Tensor, dy: Tensor, window: Window, group: int) -> Iterator[Tensor]:
    """Yield the gradient of each tap: one product per sample, then their sum; fast where products are small."""

    def rows(maps: Tensor) -> Tensor:
        n, channels = maps.shape[:2]
        return maps.reshape((n, channels, -1) if group == 1 else (n, group, channels // group, -1))

    flat, padded = rows(dy), window.pad(x)
    for position in product(*map(range, window.kernel)):
        yield (flat @ rows(window.tap(padded, position)).mT).sum([0])


def _over_samples(x: Tensor, dy: Tensor, window: Window, group: int) -> Iterator[Tensor]:
    """Yield the gradient of each tap: channels last, one product over all samples and positions."""
    last = [0, *range(2, x.rank), 1]
    padded = window.pad(x).transpose(last)
    rows = _grouped(dy.transpose(last), group)
    for position in product(*map(range, window.kernel)):
        columns = _grouped(window.tap(padded, position, first=1), group)
        yield rows.op("Gemm", columns, transA=1) if group == 1 else rows.mT @ columns


def _grouped(x: Tensor, group: int) -> Tensor:
    """Return rows of channels, shape ([groups,] samples x positions, channels of a group)."""
    channels = x.shape[-1]
    if group == 1:
        return x.reshape((-1, channels))
    return x.reshape((-1, group, channels // group)).transpose([1, 0, 2])


def _depthwise(x: Tensor, dy: Tensor, shape: Shape, window: Window) -> Tensor:
    """Every channel by itself: for each tap, the sum of dY times the inputs the windows have there."""
    padded = window.pad(x)
    if set(window.strides) != {1}:
        return _by_kernels_of(dy, padded, shape, window)
    taps = [window.tap(padded, position) for position in product(*map(range, window.kernel))]
    sums = [dot_channels(tap, dy).reshape((-1, 1)) for tap in taps]
    return x.tape.emit("Concat", *sums, axis=1).reshape(shape)


def _by_kernels_of(dy: Tensor, padded: Tensor, shape: Shape, window: Window) -> Tensor:
    """As a convolution with dY as kernels, strides and dilations exchanged: faster at larger strides."""
    n, channels = dy.shape[:2]
    images = padded.reshape((1, n * channels, *padded.shape[2:]))
    kernels = dy.reshape((n * channels, 1, *dy.shape[2:]))
    steps = {"strides": list(window.dilations), "dilations": list(window.strides)}
    return images.op("Conv", kernels, group=n * channels, **steps).reshape((n, *shape)).sum([0], keep=False)


def dot_channels(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products over each channel, shape (channels,).

    On large maps this is a convolution, which doesn't materialize the products.

    Args:
        a: shape (samples, channels, ...).
        b: the same shape.
    """
    n, channels, *size = a.shape
    positions = prod(size)
    if positions < _LARGE:
        return sum_channels(a * b)
    images, kernels = a.reshape((1, n * channels, positions)), b.reshape((n * channels, 1, positions))
    return images.op("Conv", kernels, group=n * channels).reshape((n, channels)).sum([0], keep=False)


def _input_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count one kernel per input position, where a convolution has one per output position."""
    return prod(x[0]) * prod(x[1][1:])


describe("ConvTranspose", factors=(0, 1), weights=(1, 2), linear=TransposedLayer.of, macs=_input_macs)


@traces("ConvTranspose")
def conv_transpose(op: TraceNode) -> None:
    """A transposed convolution: the weight holds input channels first."""
    convolve(op, "n (g i) *s, g i o *k, (g o) -> n (g o) *t")


def _transposed_window(op: GradientNode, dy: Tensor) -> Window:
    """Return the window of the convolution from dY's positions to X's, whose transpose the node is."""
    return Window.of_transposed(op, op.x().shape[2:], op.x(1).shape[2:], dy.shape[2:])


@gradient("ConvTranspose")
def transposed_input(op: GradientNode, dy: Tensor) -> Tensor:
    """The convolution whose transpose the node is."""
    window, group = _transposed_window(op, dy), op.attr("group", 1)
    return window.pad(dy).op(
        "Conv", op.x(1), group=group, strides=list(window.strides), dilations=list(window.dilations)
    )


@gradient("ConvTranspose", of=1)
def transposed_weight(op: GradientNode, dy: Tensor) -> Tensor:
    """As for a convolution, its input and dY exchanged."""
    return _correlate(dy, op.x(), op.x(1).shape, _transposed_window(op, dy), op.attr("group", 1))


_CAUSAL = "n c *s, c i *k, c, n c *p -> n c *s, n c *p"
_STATE = "it carries inputs over from one run to the next"
describe("CausalConvWithState", factors=(0, 1), weights=(1, 2), reasons={"linear": _STATE})
describe("com.microsoft:CausalConvWithState", factors=(0, 1), weights=(1, 2))
describe("com.microsoft:CausalConvWithState", reasons={"linear": _STATE, "gradient": _STATE})


def _weight_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count by hand, since some forms are left alone and have no spec: each output sums up one filter."""
    return prod(y) * prod(x[1][1:])


describe("DeformConv com.microsoft:CausalConvWithState", macs=_weight_macs)


@traces("CausalConvWithState")
def causal_conv(op: TraceNode) -> None:
    """A depthwise convolution over time whose last inputs are carried along."""
    op.align(_CAUSAL)


@traces("com.microsoft:CausalConvWithState")
def causal_conv_contrib(op: TraceNode) -> None:
    """As the standard's; further states, pieces of channels and channels in the last axis are left alone."""
    extra = any(op.has(i) for i in range(4, len(op.node.input))) or len(op.node.output) > 2
    if extra or any(op.attr(name, 0) for name in ("channels_last", "state_channels_last", "input_channels")):
        op.give_up("OP211", "further states, pieces of channels and channels in the last axis are left alone")
        return
    op.align(_CAUSAL)


describe(
    "DeformConv",
    factors=(0, 1),
    weights=(1, 3),
    reasons={
        "linear": "it reads positions that are only known at run time",
        "gradient": "its sampling positions have no gradient rule",
    },
)


@traces("DeformConv")
def deform_conv(op: TraceNode) -> None:
    """A convolution at positions that are given at run time, the same for all channels."""
    if op.attr("offset_group", 1) > 1:
        op.give_up("OP211", "groups of channels with their own positions are left alone")
        return
    convolve(op, "n (g i) *s, g o i *k, n *q, (g o), n *r -> n (g o) *t")


describe("com.microsoft:FusedConv", factors=(0, 1), weights=(1, 2), reasons={"linear": ACTIVATED, "gradient": FUSED})
leave("channels-last convolutions of the runtime are left alone", "com.microsoft:NhwcFusedConv")


@traces("com.microsoft:FusedConv")
def fused_conv(op: TraceNode) -> None:
    """A convolution, perhaps a sum, and an activation."""
    convolve(op, "n (g i) *s, g o i *k, (g o), n (g o) *t -> n (g o) *t")


describe("ConvInteger", factors=(0, 1), zero_points=((0, 2, 0), (1, 3, 0)), reasons=INTEGERS)
describe("QLinearConv com.microsoft:QLinearConv", factors=(0, 3), zero_points=((0, 2, 0), (3, 5, 0)), reasons=INTEGERS)


@traces("ConvInteger")
def conv_integer(op: TraceNode) -> None:
    """As Conv, with zero points."""
    convolve(op, f"n (g i) *s, g o i *k, {per_channel(op, 2, 'u')}, {per_channel(op, 3, '(g o)')} -> n (g o) *t")


@traces("QLinearConv com.microsoft:QLinearConv")
def qlinear_conv(op: TraceNode) -> None:
    """As Conv; the weight's scale and zero point are one for all or one for each output channel.

    ONNX Runtime's own may have channels last.
    """
    last = bool(op.attr("channels_last", 0))
    x, y = ("n *s (g i)", "n *t (g o)") if last else ("n (g i) *s", "n (g o) *t")
    scales = {i: per_channel(op, i, "(g o)" if i in (4, 5) else "u") for i in (1, 2, 4, 5, 6, 7)}
    convolve(
        op,
        f"{x}, {scales[1]}, {scales[2]}, g o i *k, {scales[4]}, {scales[5]}, {scales[6]}, {scales[7]}, (g o) -> {y}",
        weight=3,
        axis=-1 if last else 1,
    )
