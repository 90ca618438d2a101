"""Convolutions and products."""

from __future__ import annotations

from typing import Any

from tests.property.builder import Builder, block


@block(on="image")
def conv(b: Builder, x: str) -> str:
    spatial = len(b.shape(x)) - 2
    more: dict[str, Any] = {}
    kernel = b.pick(1, 3)
    if b.flag() and kernel == 3:
        more["dilations"] = [2] * spatial
    if b.flag():
        more["strides"] = [2] * spatial
    if b.pick(False, False, True) and "dilations" not in more:
        more["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER")
    return b.net.conv(x, b.number(2, 8), kernel, bias=b.flag(), **more)


@block(on="image")
def grouped_conv(b: Builder, x: str) -> str | None:
    groups = [g for g in (2, 3, 4) if b.channels(x) % g == 0]
    if not groups:
        return None
    group = b.pick(*groups)
    return b.net.conv(x, group * b.number(1, 3), b.pick(1, 3), bias=b.flag(), group=group)


@block(on="image")
def depthwise_conv(b: Builder, x: str) -> str:
    c = b.channels(x)
    return b.net.conv(x, c * b.pick(1, 1, 2), 3, bias=b.flag(), group=c)


@block(on="image")
def separable_conv(b: Builder, x: str) -> str:
    c = b.channels(x)
    y = b.net.op("Relu", b.net.conv(x, c, 3, group=c))
    return b.net.conv(y, b.number(2, 8))


@block(on="image")
def conv_transpose(b: Builder, x: str) -> str:
    c, spatial = b.channels(x), len(b.shape(x)) - 2
    group = b.pick(*[g for g in (1, 1, 2, c) if c % g == 0])
    out = b.number(1, 3)
    w = b.net.weight(c, out, *[2] * spatial, fan_in=c // group)
    bias = [b.net.weight(out * group)] if b.flag() else []
    more: dict[str, Any] = {"strides": [2] * spatial} if b.flag() else {}
    if "strides" in more and b.flag():
        more["output_padding"] = [1] * spatial
    return b.net.op("ConvTranspose", x, w, *bias, group=group, **more)


@block(on="vector")
def gemm(b: Builder, x: str) -> str:
    c, out = b.channels(x), b.number(2, 8)
    transposed = b.flag()
    w = b.net.weight(*((out, c) if transposed else (c, out)), fan_in=c)
    bias = [b.net.weight(*b.pick((out,), (1, out), (1,)))] if b.net.opset >= 11 and b.flag() else [b.net.weight(out)]
    return b.net.op("Gemm", x, w, *bias, transB=int(transposed), alpha=b.pick(1.0, 0.5))


@block(on="vector")
def matmul(b: Builder, x: str) -> str:
    y = b.net.linear(x, b.number(2, 8))
    return b.net.op("Add", y, b.net.weight(b.shape(y)[1])) if b.flag() else y


@block(on="image")
def channels_last(b: Builder, x: str) -> str:
    """An excursion to NHWC, as exporters from TensorFlow write it."""
    rank = len(b.shape(x))
    y = b.net.op("Transpose", x, perm=[0, *range(2, rank), 1])
    y = b.net.op("Relu", b.net.op("Add", y, b.net.weight(b.channels(x))))
    if b.flag():
        y = b.net.linear(y, b.number(2, 6))
    return b.net.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)])


@block(on="image")
def shared_weights(b: Builder, x: str) -> str | None:
    """One convolution on two tensors, as detectors' heads have it."""
    y = b.other(x, same=[1])
    if y is None:
        return None
    c, out, ones = b.channels(x), b.number(2, 6), b.ones(x)
    w, bias = b.net.weight(out, c, *ones, fan_in=c), b.net.weight(out)
    b.used.add(y)
    b.live.append(b.net.op("Conv", y, w, bias))
    return b.net.op("Conv", x, w, bias)


@block(since=12)
def einsum(b: Builder, x: str) -> str:
    axes = "xyz"[: len(b.shape(x)) - 2]
    w = b.net.weight(b.channels(x), b.number(2, 6), fan_in=b.channels(x))
    return b.net.op("Einsum", x, w, equation=f"nc{axes},cd->nd{axes}")


@block(on="square", sized=True)
def non_local(b: Builder, x: str) -> str:
    """Attention over positions, single-headed: two activations are contracted over channels."""
    n, c, h, w = b.shape(x)
    width = b.number(2, 5)
    q, k, v = (b.net.reshape(b.net.conv(x, m), b.batch_free([n, m, h * w])) for m in (width, width, c))
    score = b.net.op("MatMul", b.net.op("Transpose", q, perm=[0, 2, 1]), k)
    weights = b.net.op("Softmax", score, axis=2)
    mixed = b.net.op("MatMul", v, b.net.op("Transpose", weights, perm=[0, 2, 1]))
    return b.net.op("Add", x, b.net.reshape(mixed, b.batch_free([n, c, h, w])))
