"""Normalizations and activations."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from tests.property.builder import Builder, block


@block()
def batch_norm(b: Builder, x: str) -> str:
    c = b.channels(x)
    moments = [b.net.weight(c), b.net.between(0.5, 2.0, c)]
    return b.net.op("BatchNormalization", x, b.net.between(0.5, 1.5, c), b.net.weight(c), *moments)


@block(on="image")
def instance_norm(b: Builder, x: str) -> str | None:
    if prod(b.shape(x)[2:]) < 4:
        return None
    c = b.channels(x)
    return b.net.op("InstanceNormalization", x, b.net.between(0.5, 1.5, c), b.net.weight(c), epsilon=0.1)


@block(on="square")
def lrn(b: Builder, x: str) -> str:
    return b.net.op("LRN", x, size=b.pick(1, 3, 5), alpha=0.5, bias=2.0)


@block(on="image", sized=True)
def group_norm(b: Builder, x: str) -> str | None:
    """As PyTorch exports it: InstanceNormalization on groups, then scale and shift."""
    groups = [g for g in (1, 2, 3) if b.channels(x) % g == 0]
    if prod(b.shape(x)[2:]) < 4:
        return None
    g = b.pick(*groups)
    y = b.net.reshape(x, b.batch_free([b.shape(x)[0], g, -1]))
    y = b.net.op("InstanceNormalization", y, b.net.const(np.ones(g, np.float32)), b.net.const(np.zeros(g, np.float32)))
    y = b.net.reshape(y, b.batch_free(b.shape(x)))
    return b.net.op("Add", b.net.op("Mul", y, b.per_channel(x)), b.per_channel(x))


@block(since=17)
def layer_norm(b: Builder, x: str) -> str | None:
    if b.channels(x) < 2:
        return None
    rank, c = len(b.shape(x)), b.channels(x)
    y = b.net.op("Transpose", x, perm=[0, *range(2, rank), 1]) if rank > 2 else x
    y = b.net.op("LayerNormalization", y, b.net.between(0.5, 1.5, c), b.net.weight(c), epsilon=0.1)
    return b.net.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)]) if rank > 2 else y


@block()
def decomposed_norm(b: Builder, x: str) -> str:
    """A norm over channels out of single operators."""
    mean = b.net.reduce("ReduceMean", x, [1])
    centered = b.net.op("Sub", x, mean)
    square = b.net.op("Mul", centered, centered)
    variance = b.net.op("Add", b.net.reduce("ReduceMean", square, [1]), b.net.const(0.1))
    return b.net.op("Mul", b.net.op("Div", centered, b.net.op("Sqrt", variance)), b.per_channel(x))


_ACTIVATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "Abs": (6, {}),
    "Celu": (12, {}),
    "Cos": (7, {}),
    "Elu": (6, {"alpha": 0.5}),
    "Erf": (9, {}),
    "Gelu": (20, {}),
    "HardSigmoid": (6, {}),
    "HardSwish": (14, {}),
    "LeakyRelu": (6, {"alpha": 0.1}),
    "Mish": (18, {}),
    "Neg": (6, {}),
    "Relu": (6, {}),
    "Selu": (6, {}),
    "Sigmoid": (6, {}),
    "Sin": (7, {}),
    "Softplus": (1, {}),
    "Softsign": (1, {}),
    "Tanh": (6, {}),
    "ThresholdedRelu": (10, {"alpha": 0.3}),
}


@block()
def activation(b: Builder, x: str) -> str:
    name = b.pick(*(n for n, (since, _) in _ACTIVATIONS.items() if since <= b.net.opset))
    return b.net.op(name, x, **_ACTIVATIONS[name][1])


@block()
def exp(b: Builder, x: str) -> str:
    return b.net.op("Exp", b.net.clip(x, -2.0, 1.0))


@block()
def reciprocal(b: Builder, x: str) -> str:
    """Of something that isn't zero where x is."""
    return b.net.op("Reciprocal", b.net.op("Add", b.net.op("Mul", x, x), b.net.const(1.0)))


@block()
def log_sqrt(b: Builder, x: str) -> str:
    y = b.net.op("Add", b.net.op("Softplus", x), b.net.const(0.5))
    return b.net.op(b.pick("Log", "Sqrt"), y)


@block()
def prelu(b: Builder, x: str) -> str:
    return b.net.op("PRelu", x, b.per_channel(x) if b.flag() else b.net.between(0.1, 0.3, 1))


@block()
def silu(b: Builder, x: str) -> str:
    return b.net.op("Mul", x, b.net.op("Sigmoid", x))


@block()
def dropout(b: Builder, x: str) -> str:
    return b.net.dropout(x)


@block()
def softmax(b: Builder, x: str) -> str:
    rank = len(b.shape(x))
    return b.net.op(b.pick("Softmax", "LogSoftmax"), x, axis=b.number(1, rank - 1))
