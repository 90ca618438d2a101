"""Random networks: blocks of the operators that convolutional networks are made of, put together at random.

A block is a function that appends nodes to a net and returns the tensor it computed, or None where it doesn't fit (too
few channels, an older opset). Weights are scaled by their fan-in and whatever could blow up is clamped, so that outputs
stay of order one and a wrong channel shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper, printer

from tests.toolbox import Net, Shape

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]
Block = Callable[["Builder", str], str | None]

BLOCKS: dict[str, Block] = {}
OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)


@dataclass
class Builder:
    """A net that grows by blocks.

    Attributes:
        draw: hypothesis' source of choices.
        net: the net.
        live: all tensors that later blocks may read.
        used: those that something reads.
        batch: the size of the batch axis.
        symbolic: whether the model leaves the batch's size open.
        resizable: whether it leaves the images' size open; nothing may rely on it then.
    """

    draw: Draw[Any]
    net: Net
    batch: int
    symbolic: bool
    resizable: bool
    live: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def pick(self, *options: T) -> T:
        """Choose one of several things."""
        chosen: T = self.draw(st.sampled_from(options))
        return chosen

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def order(self, size: int) -> list[int]:
        """Choose an order of the first integers."""
        return [int(i) for i in self.draw(st.permutations(range(size)))]

    def shape(self, x: str) -> Shape:
        return self.net.shape(x)

    def channels(self, x: str) -> int:
        return self.shape(x)[1]

    def image(self, x: str) -> bool:
        return len(self.shape(x)) > 2

    def other(self, x: str, *, same: Sequence[int]) -> str | None:
        """Choose another tensor of x's rank and of its sizes on some axes."""
        shape = self.shape(x)
        fits = [
            y
            for y in self.live
            if y != x and len(self.shape(y)) == len(shape) and all(self.shape(y)[a] == shape[a] for a in same)
        ]
        return self.pick(*fits) if fits else None

    def per_channel(self, x: str, low: float = -1.0, high: float = 1.0) -> str:
        """Add a weight that broadcasts against x with one number for each channel."""
        return self.net.between(low, high, self.channels(x), *[1] * (len(self.shape(x)) - 2))

    def batch_free(self, target: Sequence[int]) -> list[int]:
        """Return a Reshape target that doesn't state the size of the batch where the model leaves it open."""
        return [0 if self.symbolic else target[0], *target[1:]]


def block(function: Block) -> Block:
    """Register a block."""
    BLOCKS[function.__name__] = function
    return function


# Contractions


@block
def conv(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
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


@block
def grouped_conv(b: Builder, x: str) -> str | None:
    groups = [g for g in (2, 3, 4) if b.channels(x) % g == 0]
    if not b.image(x) or not groups:
        return None
    group = b.pick(*groups)
    return b.net.conv(x, group * b.number(1, 3), b.pick(1, 3), bias=b.flag(), group=group)


@block
def depthwise_conv(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    c = b.channels(x)
    return b.net.conv(x, c * b.pick(1, 1, 2), 3, bias=b.flag(), group=c)


@block
def separable_conv(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    c = b.channels(x)
    y = b.net.op("Relu", b.net.conv(x, c, 3, group=c))
    return b.net.conv(y, b.number(2, 8))


@block
def conv_transpose(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    c, spatial = b.channels(x), len(b.shape(x)) - 2
    group = b.pick(*[g for g in (1, 1, 2, c) if c % g == 0])
    out = b.number(1, 3)
    w = b.net.weight(c, out, *[2] * spatial, fan_in=c // group)
    bias = [b.net.weight(out * group)] if b.flag() else []
    more: dict[str, Any] = {"strides": [2] * spatial} if b.flag() else {}
    if "strides" in more and b.flag():
        more["output_padding"] = [1] * spatial
    return b.net.op("ConvTranspose", x, w, *bias, group=group, **more)


@block
def gemm(b: Builder, x: str) -> str | None:
    if b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 8)
    transposed = b.flag()
    w = b.net.weight(*((out, c) if transposed else (c, out)), fan_in=c)
    bias = [b.net.weight(*b.pick((out,), (1, out), (1,)))] if b.net.opset >= 11 and b.flag() else [b.net.weight(out)]
    return b.net.op("Gemm", x, w, *bias, transB=int(transposed), alpha=b.pick(1.0, 0.5))


@block
def matmul(b: Builder, x: str) -> str | None:
    if b.image(x):
        return None
    y = b.net.linear(x, b.number(2, 8))
    return b.net.op("Add", y, b.net.weight(b.shape(y)[1])) if b.flag() else y


@block
def channels_last(b: Builder, x: str) -> str | None:
    """An excursion to NHWC, as exporters from TensorFlow write it."""
    if not b.image(x):
        return None
    rank = len(b.shape(x))
    y = b.net.op("Transpose", x, perm=[0, *range(2, rank), 1])
    y = b.net.op("Relu", b.net.op("Add", y, b.net.weight(b.channels(x))))
    if b.flag():
        y = b.net.linear(y, b.number(2, 6))
    return b.net.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)])


@block
def shared_weights(b: Builder, x: str) -> str | None:
    """One convolution on two tensors, as detectors' heads have it."""
    y = b.other(x, same=[1]) if b.image(x) else None
    if y is None:
        return None
    c, out, ones = b.channels(x), b.number(2, 6), [1] * (len(b.shape(x)) - 2)
    w, bias = b.net.weight(out, c, *ones, fan_in=c), b.net.weight(out)
    b.used.add(y)
    b.live.append(b.net.op("Conv", y, w, bias))
    return b.net.op("Conv", x, w, bias)


@block
def einsum(b: Builder, x: str) -> str | None:
    if b.net.opset < 12:
        return None
    axes = "xyz"[: len(b.shape(x)) - 2]
    w = b.net.weight(b.channels(x), b.number(2, 6), fan_in=b.channels(x))
    return b.net.op("Einsum", x, w, equation=f"nc{axes},cd->nd{axes}")


@block
def non_local(b: Builder, x: str) -> str | None:
    """Attention over positions, single-headed: two activations are contracted over channels."""
    if len(b.shape(x)) != 4 or b.resizable:
        return None
    n, c, h, w = b.shape(x)
    width = b.number(2, 5)
    q, k, v = (b.net.reshape(b.net.conv(x, m), b.batch_free([n, m, h * w])) for m in (width, width, c))
    score = b.net.op("MatMul", b.net.op("Transpose", q, perm=[0, 2, 1]), k)
    weights = b.net.op("Softmax", score, axis=2)
    mixed = b.net.op("MatMul", v, b.net.op("Transpose", weights, perm=[0, 2, 1]))
    return b.net.op("Add", x, b.net.reshape(mixed, b.batch_free([n, c, h, w])))


# Normalisations and activations


@block
def batch_norm(b: Builder, x: str) -> str:
    c = b.channels(x)
    moments = [b.net.weight(c), b.net.between(0.5, 2.0, c)]
    return b.net.op("BatchNormalization", x, b.net.between(0.5, 1.5, c), b.net.weight(c), *moments)


@block
def instance_norm(b: Builder, x: str) -> str | None:
    if not b.image(x) or prod(b.shape(x)[2:]) < 4:
        return None
    c = b.channels(x)
    return b.net.op("InstanceNormalization", x, b.net.between(0.5, 1.5, c), b.net.weight(c), epsilon=0.1)


@block
def lrn(b: Builder, x: str) -> str | None:
    return b.net.op("LRN", x, size=b.pick(1, 3, 5), alpha=0.5, bias=2.0) if len(b.shape(x)) == 4 else None


@block
def group_norm(b: Builder, x: str) -> str | None:
    """As PyTorch exports it: InstanceNormalization on groups, then scale and shift."""
    groups = [g for g in (1, 2, 3) if b.channels(x) % g == 0]
    if not b.image(x) or b.resizable or prod(b.shape(x)[2:]) < 4:
        return None
    g = b.pick(*groups)
    y = b.net.reshape(x, b.batch_free([b.shape(x)[0], g, -1]))
    y = b.net.op("InstanceNormalization", y, b.net.const(np.ones(g, np.float32)), b.net.const(np.zeros(g, np.float32)))
    y = b.net.reshape(y, b.batch_free(b.shape(x)))
    return b.net.op("Add", b.net.op("Mul", y, b.per_channel(x)), b.per_channel(x))


@block
def layer_norm(b: Builder, x: str) -> str | None:
    if b.net.opset < 17 or b.channels(x) < 2:
        return None
    rank, c = len(b.shape(x)), b.channels(x)
    y = b.net.op("Transpose", x, perm=[0, *range(2, rank), 1]) if rank > 2 else x
    y = b.net.op("LayerNormalization", y, b.net.between(0.5, 1.5, c), b.net.weight(c), epsilon=0.1)
    return b.net.op("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)]) if rank > 2 else y


@block
def decomposed_norm(b: Builder, x: str) -> str:
    """A norm over channels out of single operators."""
    mean = b.net.reduce("ReduceMean", x, [1])
    centred = b.net.op("Sub", x, mean)
    square = b.net.op("Mul", centred, centred)
    variance = b.net.op("Add", b.net.reduce("ReduceMean", square, [1]), b.net.const(0.1))
    return b.net.op("Mul", b.net.op("Div", centred, b.net.op("Sqrt", variance)), b.per_channel(x))


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


@block
def activation(b: Builder, x: str) -> str:
    name = b.pick(*(n for n, (since, _) in _ACTIVATIONS.items() if since <= b.net.opset))
    return b.net.op(name, x, **_ACTIVATIONS[name][1])


@block
def exp(b: Builder, x: str) -> str:
    return b.net.op("Exp", b.net.clip(x, -2.0, 1.0))


@block
def reciprocal(b: Builder, x: str) -> str:
    """Of something that isn't zero where x is."""
    return b.net.op("Reciprocal", b.net.op("Add", b.net.op("Mul", x, x), b.net.const(1.0)))


@block
def log_sqrt(b: Builder, x: str) -> str:
    y = b.net.op("Add", b.net.op("Softplus", x), b.net.const(0.5))
    return b.net.op(b.pick("Log", "Sqrt"), y)


@block
def prelu(b: Builder, x: str) -> str:
    return b.net.op("PRelu", x, b.per_channel(x) if b.flag() else b.net.between(0.1, 0.3, 1))


@block
def silu(b: Builder, x: str) -> str:
    return b.net.op("Mul", x, b.net.op("Sigmoid", x))


@block
def dropout(b: Builder, x: str) -> str:
    return b.net.dropout(x)


@block
def softmax(b: Builder, x: str) -> str | None:
    rank = len(b.shape(x))
    return b.net.op(b.pick("Softmax", "LogSoftmax"), x, axis=b.number(1, rank - 1))


# Elementwise operators with weights and with each other


@block
def affine(b: Builder, x: str) -> str:
    shape = b.shape(x)
    c, rest = shape[1], shape[2:]
    ones = [1] * len(rest)
    shapes = [(c, *ones), (1, c, *ones), (1,), (), (1, 1, *ones)]
    if not b.resizable:
        shapes += [(c, *rest), (1, *rest), tuple(rest)] if rest else []
    op = b.pick("Add", "Sub", "Mul", "Div", "Max", "Min")
    w = b.net.between(0.5, 2.0, *b.pick(*shapes))
    operands = [x, w] if op == "Div" or b.flag() else [w, x]
    return b.net.op(op, *operands)


@block
def power(b: Builder, x: str) -> str:
    return b.net.op("Pow", b.net.clip(x, -2.0, 2.0), b.net.const(2.0))


@block
def where(b: Builder, x: str) -> str:
    """Chooses between a tensor and a weight, by a threshold for each channel."""
    condition = b.net.op("Greater", x, b.per_channel(x))
    return b.net.op("Where", condition, x, b.per_channel(x) if b.flag() else b.net.const(0.5))


@block
def logic(b: Builder, x: str) -> str:
    over = b.net.op("Greater", x, b.per_channel(x))
    under = b.net.op("Less", x, b.net.const(1.0))
    return b.net.op("Cast", b.net.op(b.pick("And", "Or", "Xor"), over, b.net.op("Not", under)), to=1)


@block
def combine(b: Builder, x: str) -> str | None:
    """An elementwise operator on two tensors."""
    y = b.other(x, same=range(len(b.shape(x))))
    if y is None:
        return None
    b.used.add(y)
    op = b.pick("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
    if op == "Mul":
        y = b.net.op("Tanh", y)
    return b.net.op(op, x, y)


@block
def gate(b: Builder, x: str) -> str | None:
    """Multiplied by another tensor's means."""
    y = b.other(x, same=[1]) if b.image(x) else None
    if y is None:
        return None
    b.used.add(y)
    return b.net.op("Mul", x, b.net.op("Sigmoid", b.net.op("GlobalAveragePool", y)))


@block
def ratio(b: Builder, x: str) -> str:
    """Divided by another path's values, which aren't zero where a channel is."""
    return b.net.op("Div", x, b.net.op("Add", b.net.op("Abs", x), b.net.const(1.0)))


# Movement


@block
def concat(b: Builder, x: str) -> str | None:
    rank = len(b.shape(x))
    y = b.other(x, same=[a for a in range(rank) if a != 1])
    if y is None:
        return None
    b.used.add(y)
    z = b.net.op("Concat", *b.pick((x, y), (y, x), (x, y, x)), axis=b.pick(1, 1 - rank) if b.net.opset >= 11 else 1)
    return z if b.channels(z) <= 16 else None


@block
def concat_positions(b: Builder, x: str) -> str | None:
    return b.net.op("Concat", x, b.net.op("Relu", x), axis=2) if b.image(x) and not b.resizable else None


@block
def concat_weight(b: Builder, x: str) -> str | None:
    """Constant channels are joined on, as position encodings are."""
    if b.symbolic or b.resizable:
        return None
    n, _, *rest = b.shape(x)
    return b.net.op("Concat", x, b.net.weight(n, 2, *rest), axis=1)


@block
def split(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    if c < 3:
        return None
    first = b.number(1, c - 1)
    parts = b.net.split(x, [first, c - first], 1)
    kept = b.net.op("Relu", parts[0])
    b.live.append(kept)
    return b.net.op("Tanh", parts[1])


@block
def split_equally(b: Builder, x: str) -> str | None:
    counts = [n for n in (2, 3) if b.channels(x) % n == 0 and b.channels(x) > n]
    if not counts:
        return None
    n = b.pick(*counts)
    parts = b.net.split(x, [b.channels(x) // n] * n, 1, implicit=b.flag())
    first, *others = b.order(n)
    y = parts[first]
    for other in others:
        y = b.net.op(b.pick("Add", "Mul"), y, b.net.op("Sigmoid", parts[other]))
    return y


@block
def slice_channels(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    if c < 3:
        return None
    low = b.number(0, c - 2)
    high = b.number(low + 2, c)
    bounds = b.pick((low, high), (low - c, high), (low, high - c if high < c else 2**31 - 1))
    return b.net.slice(x, [bounds[0]], [bounds[1]], [b.pick(1, 1 - len(b.shape(x))) if b.net.opset >= 10 else 1])


@block
def reverse_channels(b: Builder, x: str) -> str | None:
    if b.net.opset < 10:
        return None
    c = b.channels(x)
    end, start = b.pick((-c - 1, -1), (-(2**31), c - 1), (-c - 1, c + 5), (0, -1))
    return b.net.slice(x, [start], [end], [1], [-1]) if c > 2 else None


@block
def slice_positions(b: Builder, x: str) -> str | None:
    if not b.image(x) or min(b.shape(x)[2:]) < 3:
        return None
    if b.net.opset >= 10 and b.flag():
        return b.net.slice(x, [0], [2**31 - 1], [2], [2])
    return b.net.slice(x, [1], [-1], [2])


@block
def option_a(b: Builder, x: str) -> str | None:
    """A shortcut without weights: every second position, channels padded with zeroes."""
    if len(b.shape(x)) != 4 or b.net.opset < 10:
        return None
    c, more = b.channels(x), b.number(1, 2)
    y = b.net.slice(x, [0, 0], [2**31 - 1] * 2, [2, 3], [2, 2])
    y = b.net.pad(y, [0, more, 0, 0, 0, more, 0, 0])
    z = b.net.conv(b.net.op("Relu", b.net.conv(x, c + 2, 3, strides=[2, 2])), c + 2 * more, 3)
    return b.net.op("Add", z, y)


@block
def gather(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    count = b.number(2, c) if c > 1 else 0
    if not count:
        return None
    index = [i - c * (b.net.opset >= 11 and b.flag()) for i in b.order(c)[:count]]
    if b.flag():
        index.append(index[0])
    dtype = b.pick(np.int64, np.int32)
    return b.net.op("Gather", x, b.net.const(np.array(index, dtype)), axis=1)


@block
def gather_position(b: Builder, x: str) -> str | None:
    """One position is picked, and its axis vanishes."""
    return b.net.op("Gather", x, b.net.const(np.int64(0)), axis=2) if len(b.shape(x)) > 3 else None


@block
def pad_channels(b: Builder, x: str) -> str:
    spare = [0] * (len(b.shape(x)) - 2)
    before, after = b.number(0, 2), b.number(0, 2)
    return b.net.pad(x, [0, before, *spare, 0, after, *spare], b.pick(0.0, 0.5))


@block
def pad_positions(b: Builder, x: str) -> str | None:
    if not b.image(x) or min(b.shape(x)[2:]) < 2:
        return None
    ones = [1] * (len(b.shape(x)) - 2)
    return b.net.pad(x, [0, 0, *ones, 0, 0, *ones], mode=b.pick("constant", "reflect", "edge"))


@block
def shuffle(b: Builder, x: str) -> str | None:
    groups = [g for g in (2, 3, 4) if b.channels(x) % g == 0 and b.channels(x) > g]
    if not b.image(x) or b.resizable or not groups:
        return None
    (n, c, *rest), g = b.shape(x), b.pick(*groups)
    y = b.net.reshape(x, b.batch_free([n, g, c // g, *rest]))
    y = b.net.op("Transpose", y, perm=[0, 2, 1, *range(3, len(rest) + 3)])
    return b.net.reshape(y, b.pick(b.batch_free([n, c, *rest]), b.batch_free([n, -1, *rest])))


@block
def depth_to_space(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4 or b.channels(x) % 4:
        return None
    mode = {"mode": b.pick("DCR", "CRD")} if b.net.opset >= 11 else {}
    return b.net.op("DepthToSpace", x, blocksize=2, **mode)


@block
def pixel_shuffle(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4 or b.net.opset < 11:
        return None
    return b.net.op("DepthToSpace", b.net.conv(x, 4 * b.number(2, 3)), blocksize=2, mode="CRD")


@block
def space_to_depth(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4 or b.channels(x) > 4 or b.shape(x)[2] % 2 or b.shape(x)[3] % 2:
        return None
    return b.net.op("SpaceToDepth", x, blocksize=2)


@block
def flatten(b: Builder, x: str) -> str | None:
    if not b.image(x) or b.resizable or prod(b.shape(x)[1:]) > 150:
        return None
    way = b.pick("Flatten", "zero", "open", "computed")
    if way == "Flatten":
        return b.net.op("Flatten", x)
    if way == "computed":
        return dynamic_reshape(b, x, [-1])
    return b.net.reshape(x, [0, -1] if way == "zero" else [-1, prod(b.shape(x)[1:])])


@block
def unflatten(b: Builder, x: str) -> str | None:
    """A decoder's start: features become a small image."""
    c, side = b.number(2, 4), b.number(1, 2)
    if b.image(x):
        return None
    y = b.net.op("Relu", b.net.linear(x, c * side * side))
    target = [c, side, side]
    return dynamic_reshape(b, y, target) if b.flag() else b.net.reshape(y, [b.pick(0, -1), *target])


@block
def flatten_positions(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4 or b.resizable:
        return None
    n, c, _, _ = b.shape(x)
    return b.net.reshape(x, b.pick([0, 0, -1], b.batch_free([n, c, -1]), [-1, c, prod(b.shape(x)[2:])]))


@block
def into_channels(b: Builder, x: str) -> str | None:
    """Rows become channels."""
    if len(b.shape(x)) != 4 or b.resizable or b.channels(x) * b.shape(x)[2] > 16:
        return None
    n, c, h, w = b.shape(x)
    return b.net.reshape(x, b.batch_free([n, c * h, w]))


def dynamic_reshape(b: Builder, x: str, rest: Sequence[int]) -> str:
    """Reshape to a target that the model computes from the input's Shape."""
    net = b.net
    shape = net.op("Shape", x)
    if b.flag():
        size = net.unsqueeze(net.op("Gather", shape, net.const(np.int64(0)), axis=0), [0])
    else:
        size = net.slice(shape, [0], [1], [0])
    parts = [size, *(net.const(np.array([n], np.int64)) for n in rest)]
    target = net.op("Concat", *parts, axis=0)
    known = prod(n for n in rest if n != -1)
    sizes = [prod(b.shape(x)[1:]) // known if n == -1 else n for n in rest]
    return net.ops("Reshape", x, target, count=1, shapes=[[b.batch, *sizes]])[0]


@block
def measured_flatten(b: Builder, x: str) -> str | None:
    """TorchScript's x.view(x.size(0), x.size(1), -1) and back."""
    if len(b.shape(x)) != 4:
        return None
    net, (n, c, h, w) = b.net, b.shape(x)
    shape = net.op("Shape", x)
    head = net.slice(shape, [0], [2], [0])
    flat = net.ops(
        "Reshape", x, net.op("Concat", head, net.const(np.array([-1])), axis=0), count=1, shapes=[[n, c, h * w]]
    )[0]
    y = net.op("Mul", flat, net.weight(c, 1))
    return net.ops("Reshape", y, shape, count=1, shapes=[[n, c, h, w]])[0]


@block
def squeeze(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    axes = list(range(2, len(b.shape(x))))
    pooled = b.net.op(b.pick("GlobalAveragePool", "GlobalMaxPool"), x)
    return b.net.squeeze(pooled, axes)


@block
def unsqueeze(b: Builder, x: str) -> str | None:
    return None if b.image(x) else b.net.unsqueeze(x, [2, 3])


@block
def expand(b: Builder, x: str) -> str | None:
    if b.image(x):
        y = b.net.op("GlobalAveragePool", x)
        target = [b.pick(1, b.channels(x)), *[3] * (len(b.shape(x)) - 2)]
    else:
        y = b.net.unsqueeze(x, [2])
        target = [1, 1, 4]
    return b.net.op("Expand", y, b.net.const(np.array(target, np.int64)))


@block
def expand_weight(b: Builder, x: str) -> str | None:
    """A weight is spread by Expand before it meets the data."""
    w = b.per_channel(x)
    target = [b.pick(1, b.channels(x)), *[1] * (len(b.shape(x)) - 2)]
    return b.net.op("Mul", x, b.net.op("Expand", w, b.net.const(np.array(target, np.int64))))


@block
def tile(b: Builder, x: str) -> str | None:
    repeats = [1] * len(b.shape(x))
    axis = b.number(1, len(repeats) - 1)
    repeats[axis] = 2
    if axis == 1 and b.channels(x) > 8:
        return None
    return b.net.op("Tile", x, b.net.const(np.array(repeats, np.int64)))


@block
def identity(b: Builder, x: str) -> str:
    return b.net.op("Identity", x)


# Pooling, resizing and reduction


@block
def pool(b: Builder, x: str) -> str | None:
    spatial = len(b.shape(x)) - 2
    if not b.image(x) or min(b.shape(x)[2:]) < 3:
        return None
    op = b.pick("MaxPool", "AveragePool", "LpPool")
    more: dict[str, Any] = {"pads": [1] * 2 * spatial} if op != "LpPool" and b.flag() else {}
    if op == "MaxPool" and b.net.opset >= 10:
        more["ceil_mode"] = b.number(0, 1)
    if op == "AveragePool":
        more["count_include_pad"] = b.number(0, 1)
    return b.net.op(op, x, kernel_shape=[3] * spatial, strides=[b.number(1, 2)] * spatial, **more)


@block
def upsample(b: Builder, x: str) -> str | None:
    return b.net.upsample(x, 2) if len(b.shape(x)) == 4 and max(b.shape(x)) <= 8 else None


@block
def resize_to(b: Builder, x: str) -> str | None:
    """Resize to sizes that name the channels too."""
    if len(b.shape(x)) != 4 or b.net.opset < 13 or b.symbolic:
        return None
    n, c, _, _ = b.shape(x)
    return b.net.op("Resize", x, "", "", b.net.const(np.array([n, c, 5, 7], np.int64)), mode=b.pick("nearest", "linear"))


@block
def resize_like(b: Builder, x: str) -> str | None:
    """TorchScript's interpolate: the target is joined from the batch and channels of x and a computed size."""
    if len(b.shape(x)) != 4 or b.net.opset < 13:
        return None
    net, (n, c, h, w) = b.net, b.shape(x)
    head = net.slice(net.op("Shape", x), [0], [2], [0])
    tail = net.op("Mul", net.slice(net.op("Shape", x), [2], [4], [0]), net.const(np.array([2, 2], np.int64)))
    sizes = net.op("Concat", head, tail, axis=0)
    return net.ops("Resize", x, "", "", sizes, count=1, shapes=[[n, c, 2 * h, 2 * w]], mode="nearest")[0]


@block
def reduce_positions(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    axes = list(range(2, len(b.shape(x)))) if b.flag() else [-1]
    op = b.pick("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceLogSumExp")
    keep = b.number(0, 1) if len(axes) == 1 and len(b.shape(x)) > 3 else 1
    return b.net.op("Tanh", b.net.reduce(op, x, axes, keepdims=keep))


@block
def spatial_attention(b: Builder, x: str) -> str | None:
    """Statistics over channels (which makes removal an approximation) weigh the positions."""
    if len(b.shape(x)) != 4:
        return None
    parts = [b.net.reduce(op, x, [1]) for op in ("ReduceMean", "ReduceMax")]
    mask = b.net.conv(b.net.op("Concat", *parts, axis=1), 1, 3)
    return b.net.op("Mul", x, b.net.op("Sigmoid", mask))


@block
def normalised_features(b: Builder, x: str) -> str:
    """Divided by the norm over channels, as face detectors do."""
    norm = b.net.op("Add", b.net.reduce("ReduceL2", x, [1]), b.net.const(0.1))
    return b.net.op("Div", x, norm)


@block
def global_mean(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    return b.net.reduce("ReduceMean", x, list(range(2, len(b.shape(x)))), keepdims=0)


# Weights that go a long way


@block
def transposed_weight(b: Builder, x: str) -> str | None:
    if b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    return b.net.op("MatMul", x, b.net.op("Transpose", b.net.weight(out, c, fan_in=c), perm=[1, 0]))


@block
def reshaped_weight(b: Builder, x: str) -> str | None:
    """A convolution's weight that is stored as a matrix."""
    if not b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    ones = [1] * (len(b.shape(x)) - 2)
    w = b.net.reshape(b.net.weight(out, c, fan_in=c), [out, c, *ones])
    return b.net.op("Conv", x, w)


@block
def sliced_weight(b: Builder, x: str) -> str | None:
    """Two layers' weights in one initialiser, as attention packs its projections."""
    if b.image(x):
        return None
    c, first, second = b.channels(x), b.number(2, 4), b.number(2, 4)
    w = b.net.weight(first + second, c, fan_in=c)
    parts = [b.net.slice(w, [0], [first], [0]), b.net.slice(w, [first], [first + second], [0])]
    y, z = (b.net.op("MatMul", x, b.net.op("Transpose", part, perm=[1, 0])) for part in parts)
    b.live.append(b.net.op("Tanh", y))
    return b.net.op("Relu", z)


@block
def scaled_weight(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    ones = [1] * (len(b.shape(x)) - 2)
    w = b.net.op("Mul", b.net.weight(out, c, *ones, fan_in=c), b.net.between(0.5, 1.5, out, 1, *ones))
    return b.net.op("Conv", x, w, b.net.weight(out))


@block
def weight_norm(b: Builder, x: str) -> str | None:
    """A statistic over the weights themselves, left in the graph."""
    if not b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    ones = [1] * (len(b.shape(x)) - 2)
    w = b.net.weight(out, c, *ones)
    norm = b.net.reduce("ReduceL2", w, list(range(1, len(b.shape(x)))))
    w = b.net.op("Mul", b.net.op("Div", w, norm), b.net.between(0.5, 1.5, out, 1, *ones))
    return b.net.op("Conv", x, w)


@block
def cast_weight(b: Builder, x: str) -> str | None:
    if b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    w = b.net.const((b.net.rng.standard_normal((c, out)) / np.sqrt(c)).astype(b.pick(np.float16, np.float64)))
    return b.net.op("MatMul", x, b.net.op("Cast", w, to=1))


@block
def quantised_weight(b: Builder, x: str) -> str | None:
    if not b.image(x) or b.net.opset < 13:
        return None
    c, out = b.channels(x), b.number(2, 6)
    ones = [1] * (len(b.shape(x)) - 2)
    w = b.net.const(b.net.rng.integers(-127, 127, (out, c, *ones)).astype(np.int8))
    if b.flag():
        scales, zero = b.net.between(0.002, 0.01, out), b.net.const(b.net.rng.integers(-5, 5, out).astype(np.int8))
    else:
        scales, zero = b.net.const(0.005), b.net.const(np.int8(b.number(-3, 3)))
    return b.net.op("Conv", x, b.net.op("DequantizeLinear", w, scales, zero, axis=0))


@block
def quantised(b: Builder, x: str) -> str | None:
    """A tensor is quantised and dequantised."""
    if b.net.opset < 13:
        return None
    scale, zero = b.net.const(0.05), b.net.const(np.uint8(128))
    return b.net.op("DequantizeLinear", b.net.op("QuantizeLinear", x, scale, zero), scale, zero)


@block
def shared_bias(b: Builder, x: str) -> str | None:
    """Two layers read one vector, as TorchScript's exporter has equal ones."""
    if not b.image(x):
        return None
    c, out = b.channels(x), b.number(2, 6)
    ones = [1] * (len(b.shape(x)) - 2)
    bias = b.net.weight(out)
    y, z = (b.net.op("Conv", x, b.net.weight(out, c, *ones, fan_in=c), bias) for _ in range(2))
    b.live.append(y)
    return b.net.op("Sigmoid", z)


@block
def filled_weight(b: Builder, x: str) -> str:
    """A weight out of ConstantOfShape, and one out of a Constant node."""
    shape = [b.channels(x), *[1] * (len(b.shape(x)) - 2)]
    value = helper.make_tensor("value", 1, [1], [0.7])
    y = b.net.op("Mul", x, b.net.op("ConstantOfShape", b.net.const(np.array(shape, np.int64)), value=value))
    shift = numpy_helper.from_array(b.net.rng.standard_normal(shape).astype(np.float32))
    return b.net.op("Add", y, b.net.op("Constant", value=shift))


@block
def weight_from_the_left(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 3:
        return None
    c = b.channels(x)
    return b.net.op("MatMul", b.net.weight(b.number(2, 6), c, fan_in=c), x)


@block
def dynamic_conv(b: Builder, x: str) -> str | None:
    """A convolution whose weight is computed from its input."""
    if len(b.shape(x)) != 4 or b.symbolic or b.batch > 1 or b.channels(x) > 6:
        return None
    c, out = b.channels(x), b.number(2, 4)
    pooled = b.net.squeeze(b.net.op("GlobalAveragePool", x), [2, 3])
    w = b.net.linear(pooled, out * c)
    return b.net.op("Conv", x, b.net.reshape(w, [out, c, 1, 1]))


@block
def masked_channels(b: Builder, x: str) -> str:
    """A constant mask switches channels off."""
    mask = b.net.const(b.net.rng.random([b.channels(x), *[1] * (len(b.shape(x)) - 2)]) < 0.7)
    return b.net.op("Where", mask, x, b.net.const(0.0))


# Stranger movements


@block
def doubled(b: Builder, x: str) -> str:
    """A tensor meets itself."""
    if b.flag() and b.channels(x) <= 8:
        return b.net.op("Concat", x, b.net.op("Neg", x), x, axis=1)
    return b.net.op(b.pick("Add", "Mul"), x, x)


@block
def meets_its_reverse(b: Builder, x: str) -> str | None:
    """A channel is tied to its mirror image."""
    if b.net.opset < 10 or b.channels(x) < 3:
        return None
    return b.net.op("Add", x, b.net.slice(x, [-1], [-(2**31)], [1], [-1]))


@block
def fold_into_batch(b: Builder, x: str) -> str | None:
    """Each channel is treated as an image of its own."""
    if len(b.shape(x)) != 4 or b.resizable:
        return None
    _, c, h, w = b.shape(x)
    y = b.net.conv(b.net.reshape(x, [-1, 1, h, w]), 1, 3)
    return b.net.reshape(y, [-1, c, h, w])


@block
def space_to_channels(b: Builder, x: str) -> str | None:
    """SpaceToDepth out of Reshape and Transpose, as PyTorch's pixel_unshuffle."""
    if len(b.shape(x)) != 4 or b.resizable or b.channels(x) > 4:
        return None
    n, c, h, w = b.shape(x)
    if h % 2 or w % 2:
        return None
    y = b.net.reshape(x, b.batch_free([n, c, h // 2, 2, w // 2, 2]))
    y = b.net.op("Transpose", y, perm=b.pick([0, 1, 3, 5, 2, 4], [0, 3, 5, 1, 2, 4]))
    return b.net.reshape(y, b.batch_free([n, 4 * c, h // 2, w // 2]))


@block
def focus(b: Builder, x: str) -> str | None:
    """YOLOX's stem: four subsampled images side by side."""
    if len(b.shape(x)) != 4 or b.net.opset < 10 or b.channels(x) > 4 or b.shape(x)[2] % 2:
        return None
    end = 2**31 - 1
    parts = [b.net.slice(x, [i, j], [end, end], [2, 3], [2, 2]) for i in (0, 1) for j in (0, 1)]
    return b.net.op("Concat", *parts, axis=1)


@block
def joined_batches(b: Builder, x: str) -> str | None:
    """Two tensors share a layer by way of the batch axis, and part again."""
    if b.symbolic or not b.image(x):
        return None
    y = b.net.op("Concat", x, b.net.op("Tanh", x), axis=0)
    y, z = b.net.split(b.net.conv(y, b.number(2, 6)), [b.batch, b.batch], 0)
    return b.net.op("Mul", y, b.net.op("Sigmoid", z))


@block
def captured(b: Builder, x: str) -> str | None:
    """The body of an If reads a tensor from outside, which pins it."""
    if b.net.opset < 11:
        return None
    kind = helper.make_tensor_value_info("inner", 1, None)
    bodies = {
        f"{branch}_branch": helper.make_graph([helper.make_node(op, [x], ["inner"])], branch, [], [kind])
        for branch, op in (("then", "Relu"), ("else", "Neg"))
    }
    y = b.net.ops("If", b.net.const(np.array(True)), count=1, shapes=[b.shape(x)], **bodies)[0]
    b.net.types[y].tensor_type.elem_type = 1
    return b.net.op("Add", x, y)


@block
def expand_like(b: Builder, x: str) -> str | None:
    """Expand to the measured shape of another tensor."""
    if not b.image(x) or b.resizable:
        return None
    pooled = b.net.op("GlobalAveragePool", x)
    (y,) = b.net.ops("Expand", pooled, b.net.op("Shape", b.net.op("Relu", x)), count=1, shapes=[b.shape(x)])
    return b.net.op("Mul", x, y)


@block
def zeros_like(b: Builder, x: str) -> str | None:
    """Channels of constants, as many as were measured, are joined on or added."""
    value = helper.make_tensor("value", 1, [1], [b.pick(0.0, 0.5)])
    (y,) = b.net.ops("ConstantOfShape", b.net.op("Shape", x), count=1, shapes=[b.shape(x)], value=value)
    b.net.types[y].tensor_type.elem_type = 1
    if b.flag() or b.channels(x) > 8:
        return b.net.op("Add", x, y)
    return b.net.op("Concat", x, y, axis=1)


@block
def tied_decoder(b: Builder, x: str) -> str | None:
    """One weight reads channels in a convolution and makes them in a transposed one."""
    if not b.image(x):
        return None
    c, inner, ones = b.channels(x), b.number(2, 5), [1] * (len(b.shape(x)) - 2)
    w = b.net.weight(inner, c, *ones, fan_in=c)
    return b.net.op("ConvTranspose", b.net.op("Relu", b.net.op("Conv", x, w)), w)


@block
def channel_attention(b: Builder, x: str) -> str | None:
    """ECA: a convolution along the channel axis, which mixes neighbours."""
    if len(b.shape(x)) != 4 or b.channels(x) < 3:
        return None
    pooled = b.net.squeeze(b.net.op("GlobalAveragePool", x), [3])
    y = b.net.conv(b.net.op("Transpose", pooled, perm=[0, 2, 1]), 1, 3, bias=False)
    return b.net.op("Mul", x, b.net.op("Sigmoid", b.net.unsqueeze(b.net.op("Transpose", y, perm=[0, 2, 1]), [3])))


@block
def channel_pool(b: Builder, x: str) -> str | None:
    """Channels are pooled as if they were positions."""
    if len(b.shape(x)) != 4 or b.channels(x) < 3:
        return None
    y = b.net.op("Transpose", x, perm=[0, 2, 1, 3])
    y = b.net.op(b.pick("MaxPool", "AveragePool"), y, kernel_shape=[2, 1], strides=[1, 1])
    return b.net.op("Transpose", y, perm=[0, 2, 1, 3])


@block
def bilinear(b: Builder, x: str) -> str | None:
    """Two sets of channels melt into one axis."""
    if len(b.shape(x)) != 4 or b.resizable:
        return None
    n, _, h, w = b.shape(x)
    first, second = b.number(2, 4), b.number(2, 4)
    y = b.net.reshape(b.net.conv(x, first), b.batch_free([n, first, h * w]))
    z = b.net.reshape(b.net.conv(x, second), b.batch_free([n, second, h * w]))
    product = b.net.op("MatMul", y, b.net.op("Transpose", z, perm=[0, 2, 1]))
    return b.net.reshape(b.net.op("Mul", product, b.net.const(0.1)), b.batch_free([n, first * second]))


@block
def sequential_groups(b: Builder, x: str) -> str | None:
    """Two grouped convolutions whose numbers of groups don't divide each other's channels alike."""
    if not b.image(x):
        return None
    y = b.net.conv(b.net.conv(x, 12), 12, group=b.pick(2, 3, 4, 6))
    return b.net.conv(b.net.op("Relu", y), 12, group=b.pick(2, 3, 4, 6))


# Sequences


@block
def multi_head_attention(b: Builder, x: str) -> str | None:
    """As PyTorch exports it: projections, a Reshape into heads, scores, values, a Reshape back, a projection."""
    if len(b.shape(x)) != 3 or b.resizable:
        return None
    net, (n, c, length) = b.net, b.shape(x)
    heads, width = b.number(2, 3), b.pick(2, 3, 4)
    tokens = net.op("Transpose", x, perm=[0, 2, 1])

    def split(y: str) -> str:
        y = net.reshape(y, b.batch_free([n, length, heads, width]))
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    if b.flag():
        packed = net.op("Add", net.linear(tokens, 3 * heads * width), net.weight(3 * heads * width))
        q, k, v = map(split, net.split(packed, [heads * width] * 3, 2))
    else:
        q, k, v = (split(net.linear(tokens, heads * width)) for _ in range(3))
    if width == 4 and b.flag():  # rotary embeddings

        def rotated(y: str) -> str:
            left, right = net.split(y, [2, 2], 3)
            turned = net.op("Concat", net.op("Neg", right), left, axis=3)
            cosine, sine = (net.between(-1, 1, length, width) for _ in range(2))
            return net.op("Add", net.op("Mul", y, cosine), net.op("Mul", turned, sine))

        q, k = rotated(q), rotated(k)
    scores = net.op("MatMul", net.op("Mul", q, net.const(0.5)), net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=3), v)
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), b.batch_free([n, length, heads * width]))
    return net.op("Add", x, net.op("Transpose", net.linear(y, c), perm=[0, 2, 1]))


@block
def recurrent(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 3:
        return None
    net, (n, c, length) = b.net, b.shape(x)
    op, hidden = b.pick("RNN", "GRU", "LSTM"), b.number(2, 5)
    gates, directions = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], b.number(1, 2)
    w = net.weight(directions, gates * hidden, c, fan_in=c)
    r = net.weight(directions, gates * hidden, hidden, fan_in=hidden)
    bias = [net.weight(directions, 2 * gates * hidden)] if b.flag() else []
    steps = net.op("Transpose", x, perm=[2, 0, 1])
    more = {"direction": "bidirectional"} if directions > 1 else {}
    shapes = [[length, directions, n, hidden], [directions, n, hidden]]
    y, last = net.ops(op, steps, w, r, *bias, count=2, hidden_size=hidden, shapes=shapes, **more)
    if b.flag():
        return net.squeeze(net.slice(last, [0], [1], [0]), [0])
    y = net.op("Transpose", y, perm=[2, 1, 3, 0])  # batch, directions, hidden, steps
    if directions == 1:
        return net.squeeze(y, [1])
    return net.reshape(y, [0, directions * hidden, -1]) if not b.resizable else None


# Blocks of known architectures


@block
def residual(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    y = b.net.op(b.pick("Relu", "Sigmoid", "Softplus"), b.net.conv(x, b.number(2, 6), 3))
    return b.net.op("Add", x, b.net.conv(y, b.channels(x)))


@block
def squeeze_excite(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4:
        return None
    c, inner = b.channels(x), b.number(2, 4)
    if b.flag():
        y = b.net.conv(b.net.op("Relu", b.net.conv(b.net.op("GlobalAveragePool", x), inner)), c)
    else:
        y = b.net.reduce("ReduceMean", x, [2, 3], keepdims=0)
        y = b.net.linear(b.net.op("Relu", b.net.linear(y, inner)), c)
        y = b.net.unsqueeze(y, [2, 3])
    return b.net.op("Mul", x, b.net.op(b.pick("Sigmoid", "HardSigmoid"), y))


@block
def c2f(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4:
        return None
    width = b.number(2, 3)
    parts = b.net.split(silu(b, b.net.conv(x, 2 * width)), [width, width], 1, implicit=b.flag())
    y = parts[1]
    for _ in range(b.number(1, 2)):
        z = silu(b, b.net.conv(silu(b, b.net.conv(y, b.number(2, 4), 3)), width, 3))
        y = b.net.op("Add", y, z) if b.flag() else z
        parts.append(y)
    return b.net.conv(b.net.op("Concat", *parts, axis=1), b.number(2, 6))


@block
def dense_layers(b: Builder, x: str) -> str | None:
    if len(b.shape(x)) != 4:
        return None
    for _ in range(2):
        y = b.net.conv(b.net.op("Relu", batch_norm(b, x)), b.number(2, 3), 3)
        x = b.net.op("Concat", x, y, axis=1)
    return x


@block
def inverted_residual(b: Builder, x: str) -> str | None:
    if not b.image(x):
        return None
    c = b.channels(x)
    y = b.net.clip(b.net.conv(x, 2 * c), 0.0, 6.0)
    y = b.net.clip(b.net.conv(y, 2 * c, 3, group=2 * c), 0.0, 6.0)
    return b.net.op("Add", x, b.net.conv(y, c))


@block
def shuffle_unit(b: Builder, x: str) -> str | None:
    """ShuffleNetV2: half of the channels are worked on, then both halves are interleaved."""
    if len(b.shape(x)) != 4 or b.channels(x) % 2 or b.channels(x) < 4 or b.resizable:
        return None
    half = b.channels(x) // 2
    left, right = b.net.split(x, [half, half], 1)
    right = b.net.op("Relu", b.net.conv(right, half))
    right = b.net.conv(b.net.conv(right, half, 3, group=half), half)
    n, _, h, w = b.shape(x)
    y = b.net.reshape(b.net.op("Concat", left, right, axis=1), b.batch_free([n, 2, half, h, w]))
    return b.net.reshape(b.net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), b.batch_free([n, 2 * half, h, w]))


@dataclass(frozen=True)
class Sample:
    """A random model, the sizes to trace it with, and what it is made of."""

    model: ModelProto
    shapes: dict[str, Shape]
    blocks: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<{', '.join(self.blocks)}; {self.shapes}>\n{printer.to_text(self.model)}"


@st.composite
def samples(draw: Draw[Any], first: str | None = None, most: int = 6) -> Sample:
    """Draw a model of up to ``most`` blocks; the first may be given."""
    opset = draw(st.sampled_from([o for o in OPSETS if o >= _SINCE.get(first or "", 0)]))
    net = Net(opset, seed=draw(st.integers(0, 2**16)))
    batch = draw(st.integers(1, 2))
    b = Builder(draw, net, batch, symbolic=draw(st.booleans()), resizable=draw(st.sampled_from([False, False, True])))
    shapes: dict[str, Shape] = {}
    names: list[str] = []
    for index in range(draw(st.integers(1, 2))):
        spatial = draw(st.sampled_from([2, 2, 2, 1, 3, 0])) if first is None or index else 2 - (first in _NEED_SEQUENCES)
        _start(b, index, spatial, shapes)
    if first is not None:
        x = b.live[0]
        if first in _NEED_VECTORS:
            x = net.op("Relu", net.linear(b.net.squeeze(net.op("GlobalMaxPool", x), [2, 3]), draw(st.integers(2, 6))))
        else:
            b.live.append(net.op("Tanh", net.conv(x, b.channels(x))))
        _extend(b, first, x, names)
    for _ in range(draw(st.integers(0, most) if first is None else st.integers(0, 1))):
        _extend(b, draw(st.sampled_from(sorted(BLOCKS))), draw(st.sampled_from(b.live)), names)
    _heads(b)
    return Sample(_pruned_of_leftovers(net), shapes, tuple(names))


_SINCE = {
    "captured": 11,
    "einsum": 12,
    "focus": 10,
    "layer_norm": 17,
    "meets_its_reverse": 10,
    "option_a": 10,
    "pixel_shuffle": 11,
    "quantised": 13,
    "quantised_weight": 13,
    "resize_like": 13,
    "resize_to": 13,
    "reverse_channels": 10,
}
_NEED_VECTORS = ("cast_weight", "gemm", "matmul", "sliced_weight", "transposed_weight", "unflatten", "unsqueeze")
_NEED_SEQUENCES = ("multi_head_attention", "recurrent", "weight_from_the_left")


def _start(b: Builder, index: int, spatial: int, shapes: dict[str, Shape]) -> None:
    """Add an input and a layer on it, whose channels can leave."""
    side = b.draw(st.integers(4, 6))
    shape = (b.batch, 3, *[side] * spatial)
    symbols = {0: "N"} if b.symbolic else {}
    if b.resizable:
        symbols |= {a: f"S{index}{a}" for a in range(2, spatial + 2)}
    x = b.net.input(shape, symbols=symbols)
    shapes[x] = shape
    width = b.draw(st.sampled_from([4, 5, 6, 8]))
    b.live.append(b.net.conv(x, width) if spatial else b.net.op("Relu", b.net.linear(x, width)))


def _extend(b: Builder, name: str, x: str, names: list[str]) -> None:
    """Add a block, if it fits."""
    count, live, used = len(b.net.nodes), list(b.live), set(b.used)
    y = BLOCKS[name](b, x)
    if y is None or prod(b.shape(y)) > 4000:
        del b.net.nodes[count:]
        b.live, b.used = live, used
        return
    b.used.add(x)
    b.live.append(y)
    names.append(name)


def _heads(b: Builder) -> None:
    """Contract what nobody reads, and make it the model's outputs; one may be an output as it is."""
    for x in [y for y in b.live if y not in b.used]:
        rank = len(b.shape(x))
        bare = b.pick(*[False] * 7, True)
        if bare:
            y = b.net.op("Identity", x)
        elif rank > 2:
            y = b.net.conv(x, 2)
        else:
            y = b.net.linear(x, 2)
        symbols = {a: None for a in range(rank) if (b.symbolic and a == 0) or (b.resizable and a > 1)}
        b.net.output(y, symbols)


def _pruned_of_leftovers(net: Net) -> ModelProto:
    """Return the model without initialisers that nothing reads."""
    read = {name for node in net.nodes for name in node.input}
    net.tensors = {name: t for name, t in net.tensors.items() if name in read}
    return net.model()
