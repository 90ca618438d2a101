"""Weights that are stored in another form than they are used in."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.property.builder import Builder, block


@block(on="vector")
def transposed_weight(b: Builder, x: str) -> str:
    c, out = b.channels(x), b.number(2, 6)
    return b.net.op("MatMul", x, b.net.op("Transpose", b.net.weight(out, c, fan_in=c), perm=[1, 0]))


@block(on="image")
def reshaped_weight(b: Builder, x: str) -> str:
    """A convolution's weight that is stored as a matrix."""
    c, out = b.channels(x), b.number(2, 6)
    ones = b.ones(x)
    w = b.net.reshape(b.net.weight(out, c, fan_in=c), [out, c, *ones])
    return b.net.op("Conv", x, w)


@block(on="vector")
def sliced_weight(b: Builder, x: str) -> str:
    """Two layers' weights in one initializer, as attention packs its projections."""
    c, first, second = b.channels(x), b.number(2, 4), b.number(2, 4)
    w = b.net.weight(first + second, c, fan_in=c)
    parts = [b.net.slice(w, [0], [first], [0]), b.net.slice(w, [first], [first + second], [0])]
    y, z = (b.net.op("MatMul", x, b.net.op("Transpose", part, perm=[1, 0])) for part in parts)
    b.live.append(b.net.op("Tanh", y))
    return b.net.op("Relu", z)


@block(on="image")
def scaled_weight(b: Builder, x: str) -> str:
    c, out = b.channels(x), b.number(2, 6)
    ones = b.ones(x)
    w = b.net.op("Mul", b.net.weight(out, c, *ones, fan_in=c), b.net.between(0.5, 1.5, out, 1, *ones))
    return b.net.op("Conv", x, w, b.net.weight(out))


@block(on="image")
def weight_norm(b: Builder, x: str) -> str:
    """A statistic over the weights themselves, left in the graph."""
    c, out = b.channels(x), b.number(2, 6)
    ones = b.ones(x)
    w = b.net.weight(out, c, *ones)
    norm = b.net.reduce("ReduceL2", w, list(range(1, len(b.shape(x)))))
    w = b.net.op("Mul", b.net.op("Div", w, norm), b.net.between(0.5, 1.5, out, 1, *ones))
    return b.net.op("Conv", x, w)


@block(on="vector")
def cast_weight(b: Builder, x: str) -> str:
    c, out = b.channels(x), b.number(2, 6)
    w = b.net.const((b.net.rng.standard_normal((c, out)) / np.sqrt(c)).astype(b.pick(np.float16, np.float64)))
    return b.net.op("MatMul", x, b.net.op("Cast", w, to=1))


@block(on="image", since=13)
def quantized_weight(b: Builder, x: str) -> str:
    c, out = b.channels(x), b.number(2, 6)
    ones = b.ones(x)
    w = b.net.const(b.net.rng.integers(-127, 127, (out, c, *ones)).astype(np.int8))
    if b.flag():
        scales, zero = b.net.between(0.002, 0.01, out), b.net.const(b.net.rng.integers(-5, 5, out).astype(np.int8))
    else:
        scales, zero = b.net.const(0.005), b.net.const(np.int8(b.number(-3, 3)))
    return b.net.op("Conv", x, b.net.op("DequantizeLinear", w, scales, zero, axis=0))


@block(since=13)
def quantized(b: Builder, x: str) -> str:
    """A tensor is quantized and dequantized."""
    scale, zero = b.net.const(0.05), b.net.const(np.uint8(128))
    return b.net.op("DequantizeLinear", b.net.op("QuantizeLinear", x, scale, zero), scale, zero)


@block(on="image")
def shared_bias(b: Builder, x: str) -> str:
    """Two layers read one vector, as TorchScript's exporter has equal ones."""
    c, out = b.channels(x), b.number(2, 6)
    ones = b.ones(x)
    bias = b.net.weight(out)
    y, z = (b.net.op("Conv", x, b.net.weight(out, c, *ones, fan_in=c), bias) for _ in range(2))
    b.live.append(y)
    return b.net.op("Sigmoid", z)


@block()
def filled_weight(b: Builder, x: str) -> str:
    """A weight out of ConstantOfShape, and one out of a Constant node."""
    shape = [b.channels(x), *b.ones(x)]
    value = helper.make_tensor("value", 1, [1], [0.7])
    y = b.net.op("Mul", x, b.net.op("ConstantOfShape", b.net.const(np.array(shape, np.int64)), value=value))
    shift = numpy_helper.from_array(b.net.rng.standard_normal(shape).astype(np.float32))
    return b.net.op("Add", y, b.net.op("Constant", value=shift))


@block(on="sequence")
def weight_from_the_left(b: Builder, x: str) -> str:
    c = b.channels(x)
    return b.net.op("MatMul", b.net.weight(b.number(2, 6), c, fan_in=c), x)


@block(on="square")
def dynamic_conv(b: Builder, x: str) -> str | None:
    """A convolution whose weight is computed from its input."""
    if b.symbolic or b.batch > 1 or b.channels(x) > 6:
        return None
    c, out = b.channels(x), b.number(2, 4)
    pooled = b.net.squeeze(b.net.op("GlobalAveragePool", x), [2, 3])
    w = b.net.linear(pooled, out * c)
    return b.net.op("Conv", x, b.net.reshape(w, [out, c, 1, 1]))


@block()
def masked_channels(b: Builder, x: str) -> str:
    """A constant mask switches channels off."""
    mask = b.net.const(b.net.rng.random([b.channels(x), *b.ones(x)]) < 0.7)
    return b.net.op("Where", mask, x, b.net.const(0.0))
