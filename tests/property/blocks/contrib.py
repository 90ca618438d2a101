"""Operators of com.microsoft, as ONNX Runtime's optimizer writes them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.property.builder import Builder, block
from tests.toolbox import Shape


def contrib(b: Builder, op: str, *inputs: str, shape: Sequence[int], **attributes: object) -> str:
    """Add a node whose first output's shape is told, for onnx knows nothing of the domain."""
    return b.net.ops(f"com.microsoft:{op}", *inputs, count=1, shapes=[shape], **attributes)[0]


def tokens(b: Builder, x: str) -> tuple[str, Shape]:
    """Put the features of a sequence last, as these operators want them."""
    n, c, length = b.shape(x)
    return b.net.op("Transpose", x, perm=[0, 2, 1]), (n, length, c)


def fused_matmul(b: Builder, x: str, shape: Sequence[int], width: int) -> str:
    """A product with a weight, perhaps with one that lies on its side."""
    turned, features = int(b.flag()), shape[-1]
    w = b.net.weight(*((width, features) if turned else (features, width)), fan_in=features)
    return contrib(b, "FusedMatMul", x, w, shape=[*shape[:-1], width], transB=turned, alpha=b.pick(1.0, 0.5))


@block(on="image")
def fused_conv(b: Builder, x: str) -> str:
    """A convolution with its activation inside, and perhaps the sum before that."""
    c = b.channels(x)
    spatial = len(b.shape(x)) - 2
    if spatial != 2:
        return contrib(b, "QuickGelu", x, shape=b.shape(x), alpha=1.7)
    w, bias = b.net.weight(c, c, 3, 3, fan_in=9 * c), b.net.weight(c)
    more = [b.net.op("Tanh", x)] if b.flag() else []
    activation = b.pick("Relu", "Sigmoid", "LeakyRelu")
    slope = {"activation_params": [0.1]} if activation == "LeakyRelu" else {}
    y = contrib(b, "FusedConv", x, w, bias, *more, shape=b.shape(x), pads=[1] * 4, activation=activation, **slope)
    return b.net.conv(y, b.number(2, 6))


@block(on="vector")
def fused_gemm(b: Builder, x: str) -> str:
    """A fully connected layer with its activation inside."""
    n, c = b.shape(x)
    width = b.number(2, 6)
    w, bias = b.net.weight(width, c, fan_in=c), b.net.weight(width)
    return contrib(b, "FusedGemm", x, w, bias, shape=[n, width], transB=1, activation=b.pick("Relu", "Sigmoid"))


@block(on="sequence", sized=True)
def fused_perceptron(b: Builder, x: str) -> str:
    """A transformer's perceptron, with the bias in the Gelu and the sum in the normalization."""
    y, shape = tokens(b, x)
    width = b.pick(4, 6)
    hidden = (*shape[:-1], width)
    z = contrib(b, b.pick("BiasGelu", "FastGelu"), fused_matmul(b, y, shape, width), b.net.weight(width), shape=hidden)
    z = fused_matmul(b, z, hidden, shape[-1])
    scales = [b.net.between(0.5, 1.5, shape[-1]), *(b.net.weight(shape[-1]) for _ in range(2))]
    y = contrib(b, "SkipLayerNormalization", y, z, *scales[: b.number(1, 3)], shape=shape)
    return b.net.op("Transpose", y, perm=[0, 2, 1])


@block(on="sequence", sized=True)
def fused_attention(b: Builder, x: str) -> str:
    """An attention in one node, its projections inside or before it."""
    y, shape = tokens(b, x)
    heads, width = b.number(2, 3), b.pick(2, 4)
    inner, features = heads * width, shape[-1]
    attended = (*shape[:-1], inner)
    if b.flag():
        w, bias = b.net.weight(features, 3 * inner, fan_in=features), b.net.weight(3 * inner)
        z = contrib(b, "Attention", y, w, bias, shape=attended, num_heads=heads)
    else:
        projected = [b.net.linear(y, inner) for _ in range(3)]
        bias = [b.net.weight(3 * inner)] if b.flag() else []
        z = contrib(b, "MultiHeadAttention", *projected, *bias, shape=attended, num_heads=heads)
    return b.net.op("Transpose", b.net.op("Add", y, b.net.linear(z, features)), perm=[0, 2, 1])
