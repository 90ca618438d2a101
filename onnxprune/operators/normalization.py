"""Normalizations: exact per channel; where statistics are taken over channels, removal is an approximation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.model.tape import Tensor
from onnxprune.operators.card import FUSED, describe, gradient, rewrites, traces
from onnxprune.operators.convolution import dot_channels, sum_channels
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

_MOMENTS = "its mean and variance are taken over these channels"

describe("BatchNormalization GroupNormalization InstanceNormalization LayerNormalization", weights=(1, 2), scale=1)
describe("RMSNormalization SimplifiedLayerNormalization", weights=(1,), scale=1, normalizes="mean square")
describe("LayerNormalization", normalizes="deviation")


@traces("BatchNormalization")
def batch_normalization(op: TraceNode) -> None:
    """Every channel by itself; before opset 9 perhaps with moments and scales of its own for every position."""
    own = "c *s" if op.version < 9 and not op.attr("spatial", 1) else "c"
    op.align(f"n c *s, {own}, {own}, {own}, {own} -> n c *s, c, c, c, c")


def _channels(vector: Tensor, rank: int) -> Tensor:
    """Put a vector on axis 1."""
    return vector.reshape((1, -1, *[1] * (rank - 2)))


def _batch(op: GradientNode) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse deviation that were used, per channel."""
    mean, variance = (op.y(1), op.y(2)) if op.attr("training_mode", 0) else (op.x(3), op.x(4))
    return mean, _inverse(variance, op.attr("epsilon", 1e-5))


def _products(op: GradientNode, dy: Tensor) -> Tensor:
    """Return the sum of dy times the normalized input, per channel."""
    mean, inverse = _batch(op)
    return (dot_channels(dy, op.x()) - mean * sum_channels(dy)) * inverse


def _line(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return slope x + offset per channel, as a BatchNormalization, which is a single kernel."""
    channels = x.shape[1:2]
    zeros, ones = x.like(np.zeros(channels)), x.like(np.ones(channels))
    return x.op("BatchNormalization", slope, offset, zeros, ones, epsilon=0.0)


@gradient("BatchNormalization")
def batch_norm(op: GradientNode, dy: Tensor) -> Tensor:
    """A factor per channel; with the batch's moments, also minus a linear function of x per channel."""
    x, scale = op.x(), op.x(1)
    mean, inverse = _batch(op)
    factor = scale * inverse
    if not op.attr("training_mode", 0):
        return dy * _channels(factor, x.rank)
    share = x.shape[1] / x.size
    slope = inverse * _products(op, dy) * share
    offset = sum_channels(dy) * share - slope * mean
    return (dy - _line(x, slope, offset)) * _channels(factor, x.rank)


gradient("BatchNormalization", of=1)(_products)
gradient("BatchNormalization", of=2)(lambda op, dy: sum_channels(dy))


@traces("InstanceNormalization")
def instance_normalization(op: TraceNode) -> None:
    """Every channel by itself; statistics over positions."""
    op.align("n c *s, c, c -> n c *s", approximate={"*s": _MOMENTS})


@traces("LRN")
def lrn(op: TraceNode) -> None:
    """A sum over neighboring channels."""
    op.align("n c *s -> n c *s", approximate={"c": "it sums over neighboring channels"})


@gradient("LRN")
def local_response(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of x s^-beta with s = bias + alpha/size sum(x^2) over neighboring channels."""
    x, size = op.x(), int(op.attr("size"))
    alpha, beta, bias = (float(op.attr(*pair)) for pair in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    before = (size - 1) // 2
    s = _window(x * x, before, size - 1 - before) * (alpha / size) + bias
    back = _window(dy * x * s ** (-beta - 1), size - 1 - before, before)
    return dy * s ** (-beta) - x * back * (2 * alpha * beta / size)


def _window(x: Tensor, before: int, after: int) -> Tensor:
    """Sum over neighboring channels."""
    rest = [0] * (x.rank - 2)
    padded = x.pad([0, before, *rest], [0, after, *rest])
    pieces = [padded.slice([1], [i], [i + x.shape[1]]) for i in range(before + after + 1)]
    return x.tape.emit("Sum", *pieces) if len(pieces) > 1 else pieces[0]


@traces("LpNormalization")
def lp_normalization(op: TraceNode) -> None:
    """A norm over the axis."""
    op.approximate(op.x(0), [op.axis(-1)], "its norm is taken over these channels")
    op.give(op.x(0))


@gradient("LpNormalization")
def lp_normalization_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of x / norm: (dy - dnorm sum(y dy)) / norm, where dnorm is the norm's own derivative."""
    axis, x = [op.axis(-1)], op.x()
    inner = (dy * op.y()).sum(axis)
    if op.attr("p", 2) == 1:
        return (dy - x.op("Sign") * inner) / x.reduce("ReduceL1", axis)
    return (dy - op.y() * inner) / x.reduce("ReduceL2", axis)


@traces("MeanVarianceNormalization")
def mean_variance_normalization(op: TraceNode) -> None:
    """Mean and variance over the axes."""
    op.approximate(op.x(0), op.attr("axes", [0, 2, 3]), _MOMENTS)
    op.give(op.x(0))


@gradient("MeanVarianceNormalization")
def mean_variance_norm(op: GradientNode, dy: Tensor) -> Tensor:
    """Through the moments over its axes."""
    axes = [int(a) for a in op.attr("axes", [0, 2, 3])]
    normal, inverse = _moments(op.x(), axes, 1e-9)
    return _through(dy, normal, axes, inverse)


@traces("GroupNormalization")
def group_normalization(op: TraceNode) -> None:
    """Groups stay; each drops the same number of channels. The scale is per group before opset 21."""
    groups = op.attr("num_groups")
    scale = "(g c)" if op.shape(1) != (groups,) or op.version >= 21 else "g"
    _align_groups(op, f"n (g c) *s, {scale}, {scale} -> n (g c) *s", groups)


def _align_groups(op: TraceNode, spec: str, groups: int) -> None:
    op.align(spec, approximate={"c": _MOMENTS}, balanced={"g"}, g=groups)


@rewrites("GroupNormalization")
def norm_groups(edit: RewriteNode) -> None:
    """Groups stay, unless they are single channels or each has its own scale: then they leave as a whole."""
    groups, channels = edit.attr("num_groups"), edit.shape(0)[1]
    if channels == groups:
        edit.set_attr("num_groups", edit.new_shape(0)[1])
    elif edit.shape(1) == (groups,):
        edit.set_attr("num_groups", edit.new_shape(1)[0])


def _groups(op: GradientNode) -> int:
    return int(op.attr("num_groups", op.x().shape[1]))


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape((x.shape[0], groups, -1))


def _group(op: GradientNode) -> tuple[Tensor, Tensor]:
    return _moments(_grouped(op.x(), _groups(op)), [2], op.attr("epsilon", 1e-5))


def _spread(op: GradientNode, vector: Tensor) -> Tensor:
    """Broadcast a scale to the channels; before opset 21 that of a GroupNormalization is per group."""
    channels = op.x().shape[1]
    each = vector.reshape((-1, 1)).expand((vector.size, channels // vector.size)).reshape((channels,))
    return _channels(each, op.x().rank)


@gradient("GroupNormalization InstanceNormalization")
def group_norm(op: GradientNode, dy: Tensor) -> Tensor:
    """Through the moments of each group."""
    normal, inverse = _group(op)
    dn = _grouped(dy * _spread(op, op.x(1)), _groups(op))
    return _through(dn, normal, [2], inverse).reshape(op.x().shape)


@gradient("GroupNormalization InstanceNormalization", of=1)
def group_norm_scale(op: GradientNode, dy: Tensor) -> Tensor:
    """The sum of dy times the normalized input, for each entry of the scale."""
    normal, _ = _group(op)
    return sum_channels(dy * normal.reshape(dy.shape)).reshape((op.x(1).size, -1)).sum([1], keep=False)


@gradient("GroupNormalization InstanceNormalization", of=2)
def group_norm_shift(op: GradientNode, dy: Tensor) -> Tensor:
    """The sum of dy, for each entry of the shift."""
    return sum_channels(dy).reshape((op.x(2).size, -1)).sum([1], keep=False)


@traces("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def layer_normalization(op: TraceNode) -> None:
    """Mean and variance over the last axes."""
    before = " ".join(op.names()[: op.axis(-1)])
    op.align(f"{before} *c, *c, *c -> {before} *c, {before} *m, {before} *v", approximate={"*c": _MOMENTS})


def _through(dn: Tensor, normal: Tensor, axes: Sequence[int], inverse: Tensor, *, centered: bool = True) -> Tensor:
    """Return the gradient of the input of a normalization.

    Args:
        dn: the gradient of the normalized tensor.
        normal: the normalized tensor.
        axes: the axes over which the moments were taken.
        inverse: the inverse deviation.
        centered: whether the mean was subtracted.
    """
    inner = dn - normal * (dn * normal).mean(axes)
    return (inner - dn.mean(axes) if centered else inner) * inverse


def _inverse(variance: Tensor, epsilon: float) -> Tensor:
    return 1 / (variance + epsilon).op("Sqrt")


def _moments(x: Tensor, axes: Sequence[int], epsilon: float, *, centered: bool = True) -> tuple[Tensor, Tensor]:
    """Return a tensor normalized over axes, and its inverse deviation (or root mean square)."""
    centered_x = x - x.mean(axes) if centered else x
    inverse = _inverse((centered_x * centered_x).mean(axes), epsilon)
    return centered_x * inverse, inverse


def _layer(op: GradientNode) -> tuple[Tensor, Tensor, list[int], bool]:
    """Return the normalized input, its inverse deviation, the axes, and whether the mean was subtracted."""
    axes, centered = list(range(op.axis(-1), op.x().rank)), op.node.op_type == "LayerNormalization"
    return *_moments(op.x(), axes, op.attr("epsilon", 1e-5), centered=centered), axes, centered


@gradient("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def layer_norm(op: GradientNode, dy: Tensor) -> Tensor:
    """Through the moments, or the root mean square, over the last axes."""
    normal, inverse, axes, centered = _layer(op)
    return _through(dy * op.x(1), normal, axes, inverse, centered=centered)


gradient("LayerNormalization RMSNormalization SimplifiedLayerNormalization", of=1)(lambda op, dy: dy * _layer(op)[0])
gradient("LayerNormalization", of=2)(lambda op, dy: dy)

describe("com.microsoft:SkipLayerNormalization", weights=(2, 3, 4), scale=2, reasons={"gradient": FUSED})
describe("com.microsoft:SkipSimplifiedLayerNormalization", weights=(2, 3), scale=2, reasons={"gradient": FUSED})


@traces("com.microsoft:SkipLayerNormalization com.microsoft:SkipSimplifiedLayerNormalization")
def skip_layer_normalization(op: TraceNode) -> None:
    """A sum, then a normalization over the last axis."""
    vectors = "c, c" if op.node.op_type == "SkipSimplifiedLayerNormalization" else "c, c, c"
    op.align(f"*b c, *b c, {vectors} -> *b c, *m, *v, *b c", approximate={"c": _MOMENTS})


describe("com.microsoft:EmbedLayerNormalization", reasons={"gradient": FUSED})
describe(
    "com.microsoft:QEmbedLayerNormalization",
    zero_points=tuple((data, data + 11, 0) for data in range(2, 7)),
    reasons={"gradient": "its weights are integers"},
)


@traces("com.microsoft:EmbedLayerNormalization com.microsoft:QEmbedLayerNormalization")
def embed_layer_normalization(op: TraceNode) -> None:
    """A sum of three embeddings, then a normalization over the last axis; 8-bit ones have a scale for each operand."""
    tables = [op.pin_axes(op.x(i), [0], "OP205", "rows are looked up at run time") for i in (2, 3, 4) if op.has(i)]
    spec = ", ".join(f"v{i} c" for i in range(len(tables)))
    op.align(f"{spec}, c, c -> b s c, b, b s c", [*tables, op.x(5), op.x(6)], approximate={"c": _MOMENTS})


describe("com.microsoft:GroupNorm com.microsoft:SkipGroupNorm", weights=(1, 2), scale=1, reasons={"gradient": FUSED})


@traces("com.microsoft:GroupNorm com.microsoft:SkipGroupNorm")
def contrib_group_norm(op: TraceNode) -> None:
    """GroupNormalization, perhaps of a sum, channels last."""
    skip, last = op.node.op_type == "SkipGroupNorm", op.attr("channels_last", 1)
    if skip and not last:
        op.give_up("OP211", "channels first are left alone")
        return
    x = "n *s (g c)" if last else "n (g c) *s"
    rest = f", {x}, (g c) -> {x}, {x}" if skip else f" -> {x}"
    _align_groups(op, f"{x}, (g c), (g c){rest}", op.attr("groups"))


@rewrites("com.microsoft:GroupNorm com.microsoft:SkipGroupNorm")
def contrib_groups(edit: RewriteNode) -> None:
    """Groups stay, unless they are single channels: then they leave as a whole."""
    axis = -1 if edit.attr("channels_last", 1) else 1
    if edit.shape(0)[axis] == edit.attr("groups"):
        edit.set_attr("groups", edit.new_shape(0)[axis])


describe("com.microsoft:GatedRMSNorm", weights=(1,), scale=1, reasons={"gradient": FUSED})


@traces("com.microsoft:GatedRMSNorm")
def gated_rms_norm(op: TraceNode) -> None:
    """A root-mean-square normalization of the last axis, times a gate."""
    if op.shape(0)[-1:] != op.shape(1):
        op.give_up("OP211", "several normalizations in one axis are left alone")
        return
    op.align("*b c, c, *b c -> *b c", approximate={"c": "its mean square is taken over these channels"})
