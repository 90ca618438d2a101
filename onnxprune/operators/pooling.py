"""Operators that act on positions, channel by channel."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.model.session import run, session
from onnxprune.model.tape import INT64, Tensor
from onnxprune.operators.card import EARLY, INTEGER, describe, gradient, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode
from onnxprune.operators.window import Window

without("gradient", EARLY, "Crop ImageScaler")
without("gradient", INTEGER, "com.microsoft:NhwcMaxPool com.microsoft:QLinearAveragePool")
without("gradient", INTEGER, "com.microsoft:QLinearGlobalAveragePool")


describe("AveragePool", alike="data")
describe("GlobalAveragePool Upsample", alike="mean")


@traces("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool com.microsoft:NhwcMaxPool")
@traces("com.microsoft:QLinearAveragePool com.microsoft:QLinearGlobalAveragePool")
def pool(op: TraceNode) -> None:
    """Positions are mixed within a channel."""
    last = op.attr("channels_last", op.node.op_type == "NhwcMaxPool")
    op.align("n *s c -> n *t c" if last else "n c *s -> n c *t", [op.x(0)])


@gradient("AveragePool")
def average_pool(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread each value over its window in equal shares."""
    window = Window.of(op, op.x().shape[2:], op.attr("kernel_shape"), dy.shape[2:])
    return _spread(dy * (1 / _counts(op, window)).astype(np.float32), window)


@gradient("LpPool")
def lp_pool(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of the norm of each window with respect to its elements: sign(x) (|x| / norm)^(p-1)."""
    window = Window.of(op, op.x().shape[2:], op.attr("kernel_shape"), dy.shape[2:])
    return _spread(_over_norm(op, dy), window) * _signed_power(op)


@gradient("GlobalLpPool")
def global_lp(op: GradientNode, dy: Tensor) -> Tensor:
    """As LpPool, with one window."""
    return _over_norm(op, dy) * _signed_power(op)


def _over_norm(op: GradientNode, dy: Tensor) -> Tensor:
    """Return dy / norm^(p-1), zero where the norm is zero."""
    return (op.y() > 0).where(dy * op.y() ** (1.0 - op.attr("p", 2)), 0.0)


def _signed_power(op: GradientNode) -> Tensor:
    x, p = op.x(), op.attr("p", 2) - 1
    return x if p == 1 else x.op("Sign") * x.op("Abs") ** float(p)


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


@gradient("GlobalAveragePool")
def global_average(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread dy in equal shares."""
    return (dy * (1 / prod(op.x().shape[2:]))).expand(op.x().shape)


@gradient("GlobalMaxPool")
def global_max(op: GradientNode, dy: Tensor) -> Tensor:
    """Divide dy among the positions that are the largest."""
    chosen = op.x().equals(op.y()).cast(dy.dtype)
    return chosen * (dy / chosen.sum(range(2, dy.rank)))


@traces("Crop ImageScaler")
def image(op: TraceNode) -> None:
    """Experimental operators of early exporters: positions are cut, or an input image is scaled."""
    if op.node.op_type == "ImageScaler":
        op.pin_axes(op.x(0), [1], "OP209", "it has a number for each channel of an image")
    op.align("n c *s -> n c *t")


@traces("MaxPool")
def max_pool(op: TraceNode) -> None:
    """As the other pools; a second output counts positions through all channels."""
    if len(op.node.output) > 1 and op.node.output[1]:
        op.pin_axes(op.x(0), [1], "OP204", "its indices count through all channels")
    op.align("n c *s -> n c *t, n c *t")


@gradient("MaxPool")
def max_pool_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each value to the position of its maximum."""
    if op.attr("storage_order", 0):
        raise NotImplementedError("its storage_order is 1")
    where = op.added_output(1, dy.shape, INT64)
    return op.x().reshape((-1,)).zeros().scatter_add(where.reshape((-1,)), dy.reshape((-1,)), 0).reshape(op.x().shape)


describe("Resize", alike=lambda node: None if node.attr("extrapolation_value", 0.0) else "data")


@traces("CenterCropPad Resize Upsample")
def resize(op: TraceNode) -> None:
    """An axis whose size stays keeps its ids; on the others positions are mixed, cut or padded."""
    names = op.names()
    target = [n if size == old else "z" + n for n, old, size in zip(names, op.shape(0), op.out_shape(), strict=True)]
    op.align(f"{' '.join(names)} -> {' '.join(target)}", [op.x(0)])


@rewrites("CenterCropPad Resize")
def resize_sizes(edit: RewriteNode) -> None:
    """The sizes that remain."""
    i = 3 if edit.node.op_type == "Resize" else 1
    sizes = edit.param(i, "sizes")
    if sizes is not None and sizes.size:
        axes = edit.attr("axes") or range(len(edit.shape(0)))
        edit.set_param(i, "sizes", np.array([edit.new_out_shape(0)[a] for a in axes], dtype=sizes.dtype), is_shape=True)


@gradient("Resize")
def resize_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Apply the transposed map, axis by axis."""
    shape = op.x().shape
    for axis, (size, out) in enumerate(zip(shape, dy.shape, strict=True)):
        matrix = _matrix(op, axis, size, out)
        if not np.array_equal(matrix, np.eye(size)):
            order = [a for a in range(dy.rank) if a != axis] + [axis]
            product = dy.transpose(order) @ dy.like(matrix.T)
            dy = product.transpose(np.argsort(order).tolist())
    return dy


def _matrix(op: GradientNode, axis: int, size: int, out: int) -> NDArray[np.float32]:
    """Return the matrix that the node applies along an axis, [size, out]."""
    chosen = [a % op.x().rank for a in op.attr("axes") or range(op.x().rank)]
    if axis not in chosen:
        return np.eye(size, dtype=np.float32)
    place, count = chosen.index(axis), len(chosen)
    roi, scales = op.const(1), op.const(2)
    part = () if roi is None or not roi.size else tuple(roi[[place, place + count]].tolist())
    scale = None if scales is None or not scales.size else float(scales[place])
    if scale in (None, 1.0) and size == out and not part:
        return np.eye(size, dtype=np.float32)
    names = "antialias coordinate_transformation_mode cubic_coeff_a exclude_outside mode nearest_mode"
    attributes = tuple((n, op.attr(n)) for n in names.split() if op.attr(n) is not None)
    if op.attr("extrapolation_value"):
        raise NotImplementedError("it has an extrapolation_value")
    return _probe(op.tape.opset, size, out, scale, part, attributes)


@cache
def _probe(
    opset: int,
    size: int,
    out: int,
    scale: float | None,
    roi: tuple[float, ...],
    attributes: tuple[tuple[str, Any], ...],
) -> NDArray[np.float32]:
    """Resize the rows of a unit matrix. The shape has four axes: interpolation kernels expect images."""
    known = dict(attributes)
    region = [0.0, 0.0, 0.0, roi[0], 1.0, 1.0, 1.0, roi[1]] if roi else []
    amount = ("scales", [1.0, 1.0, 1.0, scale]) if scale else ("sizes", [1, 1, size, out])
    constants = [
        helper.make_tensor("roi", TensorProto.FLOAT, [len(region)], region),
        helper.make_tensor(amount[0], TensorProto.FLOAT if scale else TensorProto.INT64, [4], amount[1]),
    ]
    inputs = ["x", "roi", *(["scales"] if scale else ["", "sizes"])]
    node = helper.make_node("Resize", inputs, ["y"], **known)
    value = helper.make_tensor_value_info
    ports = [value("x", TensorProto.FLOAT, [1, 1, size, size])], [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "probe", *ports, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found: NDArray[np.float32] = run(session(model), {"x": np.eye(size, dtype=np.float32)[None, None]})["y"][0, 0]
    return found


@traces("DepthToSpace")
def depth_to_space(op: TraceNode) -> None:
    """The block's positions of a channel leave together."""
    block = op.attr("blocksize") ** 2
    channels = "c b" if op.attr("mode", "DCR") == "CRD" else "b c"
    op.align(f"n ({channels}) *s -> n c *t", b=block)


@gradient("DepthToSpace")
def depth_to_space_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Gather the blocks into channels again, in their original order."""
    n, c, h, w = op.x().shape
    b = op.attr("blocksize")
    apart = dy.reshape((n, c // b**2, h, b, w, b))
    order = (0, 3, 5, 1, 2, 4) if op.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return apart.transpose(order).reshape((n, c, h, w))


@traces("SpaceToDepth")
def space_to_depth(op: TraceNode) -> None:
    """A channel becomes a block of channels that leave together."""
    op.align("n c *s -> n (b c) *t", b=op.attr("blocksize") ** 2)


gradient("SpaceToDepth")(lambda op, dy: dy.op("DepthToSpace", blocksize=op.attr("blocksize")))
