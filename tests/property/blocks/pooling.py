"""Pooling, resizing and reduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.property.builder import Builder, block


@block(on="image")
def pool(b: Builder, x: str) -> str | None:
    spatial = len(b.shape(x)) - 2
    if min(b.shape(x)[2:]) < 3:
        return None
    op = b.pick("MaxPool", "AveragePool", "LpPool")
    more: dict[str, Any] = {"pads": [1] * 2 * spatial} if op != "LpPool" and b.flag() else {}
    if op == "MaxPool" and b.net.opset >= 10:
        more["ceil_mode"] = b.number(0, 1)
    if op == "AveragePool":
        more["count_include_pad"] = b.number(0, 1)
    return b.net.op(op, x, kernel_shape=[3] * spatial, strides=[b.number(1, 2)] * spatial, **more)


@block(on="square")
def upsample(b: Builder, x: str) -> str | None:
    return b.net.upsample(x, 2) if max(b.shape(x)) <= 8 else None


@block(on="square", since=13)
def resize_to(b: Builder, x: str) -> str | None:
    """Resize to sizes that name the channels too."""
    if b.symbolic:
        return None
    n, c, _, _ = b.shape(x)
    return b.net.op(
        "Resize", x, "", "", b.net.const(np.array([n, c, 5, 7], np.int64)), mode=b.pick("nearest", "linear")
    )


@block(on="square", since=13)
def resize_like(b: Builder, x: str) -> str:
    """TorchScript's interpolate: the target is joined from the batch and channels of x and a computed size."""
    net, (n, c, h, w) = b.net, b.shape(x)
    head = net.slice(net.op("Shape", x), [0], [2], [0])
    tail = net.op("Mul", net.slice(net.op("Shape", x), [2], [4], [0]), net.const(np.array([2, 2], np.int64)))
    sizes = net.op("Concat", head, tail, axis=0)
    return net.ops("Resize", x, "", "", sizes, count=1, shapes=[[n, c, 2 * h, 2 * w]], mode="nearest")[0]


@block(on="image")
def reduce_positions(b: Builder, x: str) -> str:
    axes = list(range(2, len(b.shape(x)))) if b.flag() else [-1]
    op = b.pick("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceLogSumExp")
    keep = b.number(0, 1) if len(axes) == 1 and len(b.shape(x)) > 3 else 1
    return b.net.op("Tanh", b.net.reduce(op, x, axes, keepdims=keep))


@block(on="square")
def spatial_attention(b: Builder, x: str) -> str:
    """Statistics over channels (which makes removal an approximation) weigh the positions."""
    parts = [b.net.reduce(op, x, [1]) for op in ("ReduceMean", "ReduceMax")]
    mask = b.net.conv(b.net.op("Concat", *parts, axis=1), 1, 3)
    return b.net.op("Mul", x, b.net.op("Sigmoid", mask))


@block()
def normalized_features(b: Builder, x: str) -> str:
    """Divided by the norm over channels, as face detectors do."""
    norm = b.net.op("Add", b.net.reduce("ReduceL2", x, [1]), b.net.const(0.1))
    return b.net.op("Div", x, norm)


@block(on="image")
def global_mean(b: Builder, x: str) -> str:
    return b.net.reduce("ReduceMean", x, list(range(2, len(b.shape(x)))), keepdims=0)
