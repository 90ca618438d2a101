"""Blocks of known architectures."""

from __future__ import annotations

from tests.property.blocks.activations import batch_norm, silu
from tests.property.builder import Builder, block


@block(on="image")
def residual(b: Builder, x: str) -> str:
    y = b.net.op(b.pick("Relu", "Sigmoid", "Softplus"), b.net.conv(x, b.number(2, 6), 3))
    return b.net.op("Add", x, b.net.conv(y, b.channels(x)))


@block(on="square")
def squeeze_excite(b: Builder, x: str) -> str:
    c, inner = b.channels(x), b.number(2, 4)
    if b.flag():
        y = b.net.conv(b.net.op("Relu", b.net.conv(b.net.op("GlobalAveragePool", x), inner)), c)
    else:
        y = b.net.reduce("ReduceMean", x, [2, 3], keepdims=0)
        y = b.net.linear(b.net.op("Relu", b.net.linear(y, inner)), c)
        y = b.net.unsqueeze(y, [2, 3])
    return b.net.op("Mul", x, b.net.op(b.pick("Sigmoid", "HardSigmoid"), y))


@block(on="square")
def c2f(b: Builder, x: str) -> str:
    width = b.number(2, 3)
    parts = b.net.split(silu(b, b.net.conv(x, 2 * width)), [width, width], 1, implicit=b.flag())
    y = parts[1]
    for _ in range(b.number(1, 2)):
        z = silu(b, b.net.conv(silu(b, b.net.conv(y, b.number(2, 4), 3)), width, 3))
        y = b.net.op("Add", y, z) if b.flag() else z
        parts.append(y)
    return b.net.conv(b.net.op("Concat", *parts, axis=1), b.number(2, 6))


@block(on="square")
def dense_layers(b: Builder, x: str) -> str:
    for _ in range(2):
        y = b.net.conv(b.net.op("Relu", batch_norm(b, x)), b.number(2, 3), 3)
        x = b.net.op("Concat", x, y, axis=1)
    return x


@block(on="image")
def inverted_residual(b: Builder, x: str) -> str:
    c = b.channels(x)
    y = b.net.clip(b.net.conv(x, 2 * c), 0.0, 6.0)
    y = b.net.clip(b.net.conv(y, 2 * c, 3, group=2 * c), 0.0, 6.0)
    return b.net.op("Add", x, b.net.conv(y, c))


@block(on="square", sized=True)
def shuffle_unit(b: Builder, x: str) -> str | None:
    """ShuffleNetV2: half of the channels are worked on, then both halves are interleaved."""
    if b.channels(x) % 2 or b.channels(x) < 4:
        return None
    half = b.channels(x) // 2
    left, right = b.net.split(x, [half, half], 1)
    right = b.net.op("Relu", b.net.conv(right, half))
    right = b.net.conv(b.net.conv(right, half, 3, group=half), half)
    n, _, h, w = b.shape(x)
    y = b.net.reshape(b.net.op("Concat", left, right, axis=1), b.batch_free([n, 2, half, h, w]))
    return b.net.reshape(b.net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), b.batch_free([n, 2 * half, h, w]))
