"""Splits, joins, reshapes and permutations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tests.property.builder import Builder, block


@block()
def concat(b: Builder, x: str) -> str | None:
    rank = len(b.shape(x))
    y = b.other(x, same=[a for a in range(rank) if a != 1])
    if y is None:
        return None
    b.used.add(y)
    z = b.net.op("Concat", *b.pick((x, y), (y, x), (x, y, x)), axis=b.pick(1, 1 - rank) if b.net.opset >= 11 else 1)
    return z if b.channels(z) <= 16 else None


@block(on="image", sized=True)
def concat_positions(b: Builder, x: str) -> str:
    return b.net.op("Concat", x, b.net.op("Relu", x), axis=2)


@block(sized=True)
def concat_weight(b: Builder, x: str) -> str | None:
    """Constant channels are joined on, as position encodings are."""
    if b.symbolic:
        return None
    n, _, *rest = b.shape(x)
    return b.net.op("Concat", x, b.net.weight(n, 2, *rest), axis=1)


@block()
def split(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    if c < 3:
        return None
    first = b.number(1, c - 1)
    parts = b.net.split(x, [first, c - first], 1)
    kept = b.net.op("Relu", parts[0])
    b.live.append(kept)
    return b.net.op("Tanh", parts[1])


@block()
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


@block()
def slice_channels(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    if c < 3:
        return None
    low = b.number(0, c - 2)
    high = b.number(low + 2, c)
    bounds = b.pick((low, high), (low - c, high), (low, high - c if high < c else 2**31 - 1))
    return b.net.slice(x, [bounds[0]], [bounds[1]], [b.pick(1, 1 - len(b.shape(x))) if b.net.opset >= 10 else 1])


@block(since=10)
def reverse_channels(b: Builder, x: str) -> str | None:
    c = b.channels(x)
    end, start = b.pick((-c - 1, -1), (-(2**31), c - 1), (-c - 1, c + 5), (0, -1))
    return b.net.slice(x, [start], [end], [1], [-1]) if c > 2 else None


@block(on="image")
def slice_positions(b: Builder, x: str) -> str | None:
    if min(b.shape(x)[2:]) < 3:
        return None
    if b.net.opset >= 10 and b.flag():
        return b.net.slice(x, [0], [2**31 - 1], [2], [2])
    return b.net.slice(x, [1], [-1], [2])


@block(on="square", since=10)
def option_a(b: Builder, x: str) -> str:
    """A shortcut without weights: every second position, channels padded with zeroes."""
    c, more = b.channels(x), b.number(1, 2)
    y = b.net.slice(x, [0, 0], [2**31 - 1] * 2, [2, 3], [2, 2])
    y = b.net.pad(y, [0, more, 0, 0, 0, more, 0, 0])
    z = b.net.conv(b.net.op("Relu", b.net.conv(x, c + 2, 3, strides=[2, 2])), c + 2 * more, 3)
    return b.net.op("Add", z, y)


@block()
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


@block()
def gather_position(b: Builder, x: str) -> str | None:
    """One position is picked, and its axis vanishes."""
    return b.net.op("Gather", x, b.net.const(np.int64(0)), axis=2) if len(b.shape(x)) > 3 else None


@block()
def pad_channels(b: Builder, x: str) -> str:
    spare = [0] * (len(b.shape(x)) - 2)
    before, after = b.number(0, 2), b.number(0, 2)
    return b.net.pad(x, [0, before, *spare, 0, after, *spare], b.pick(0.0, 0.5))


@block(on="image")
def pad_positions(b: Builder, x: str) -> str | None:
    if min(b.shape(x)[2:]) < 2:
        return None
    ones = b.ones(x)
    return b.net.pad(x, [0, 0, *ones, 0, 0, *ones], mode=b.pick("constant", "reflect", "edge"))


@block(on="image", sized=True)
def shuffle(b: Builder, x: str) -> str | None:
    groups = [g for g in (2, 3, 4) if b.channels(x) % g == 0 and b.channels(x) > g]
    if not groups:
        return None
    (n, c, *rest), g = b.shape(x), b.pick(*groups)
    y = b.net.reshape(x, b.batch_free([n, g, c // g, *rest]))
    y = b.net.op("Transpose", y, perm=[0, 2, 1, *range(3, len(rest) + 3)])
    return b.net.reshape(y, b.pick(b.batch_free([n, c, *rest]), b.batch_free([n, -1, *rest])))


@block(on="square")
def depth_to_space(b: Builder, x: str) -> str | None:
    if b.channels(x) % 4:
        return None
    mode = {"mode": b.pick("DCR", "CRD")} if b.net.opset >= 11 else {}
    return b.net.op("DepthToSpace", x, blocksize=2, **mode)


@block(on="square", since=11)
def pixel_shuffle(b: Builder, x: str) -> str:
    return b.net.op("DepthToSpace", b.net.conv(x, 4 * b.number(2, 3)), blocksize=2, mode="CRD")


@block(on="square")
def space_to_depth(b: Builder, x: str) -> str | None:
    if b.channels(x) > 4 or b.shape(x)[2] % 2 or b.shape(x)[3] % 2:
        return None
    return b.net.op("SpaceToDepth", x, blocksize=2)


@block(on="image", sized=True)
def flatten(b: Builder, x: str) -> str | None:
    if prod(b.shape(x)[1:]) > 150:
        return None
    way = b.pick("Flatten", "zero", "open", "computed")
    if way == "Flatten":
        return b.net.op("Flatten", x)
    if way == "computed":
        return dynamic_reshape(b, x, [-1])
    return b.net.reshape(x, [0, -1] if way == "zero" else [-1, prod(b.shape(x)[1:])])


@block(on="vector")
def unflatten(b: Builder, x: str) -> str:
    """A decoder's start: features become a small image."""
    c, side = b.number(2, 4), b.number(1, 2)
    y = b.net.op("Relu", b.net.linear(x, c * side * side))
    target = [c, side, side]
    return dynamic_reshape(b, y, target) if b.flag() else b.net.reshape(y, [b.pick(0, -1), *target])


@block(on="square", sized=True)
def flatten_positions(b: Builder, x: str) -> str:
    n, c, _, _ = b.shape(x)
    return b.net.reshape(x, b.pick([0, 0, -1], b.batch_free([n, c, -1]), [-1, c, prod(b.shape(x)[2:])]))


@block(on="square", sized=True)
def into_channels(b: Builder, x: str) -> str | None:
    """Rows become channels."""
    if b.channels(x) * b.shape(x)[2] > 16:
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


@block(on="square")
def measured_flatten(b: Builder, x: str) -> str:
    """TorchScript's x.view(x.size(0), x.size(1), -1) and back."""
    net, (n, c, h, w) = b.net, b.shape(x)
    shape = net.op("Shape", x)
    head = net.slice(shape, [0], [2], [0])
    flat = net.ops(
        "Reshape", x, net.op("Concat", head, net.const(np.array([-1])), axis=0), count=1, shapes=[[n, c, h * w]]
    )[0]
    y = net.op("Mul", flat, net.weight(c, 1))
    return net.ops("Reshape", y, shape, count=1, shapes=[[n, c, h, w]])[0]


@block(on="image")
def squeeze(b: Builder, x: str) -> str:
    axes = list(range(2, len(b.shape(x))))
    pooled = b.net.op(b.pick("GlobalAveragePool", "GlobalMaxPool"), x)
    return b.net.squeeze(pooled, axes)


@block(on="vector")
def unsqueeze(b: Builder, x: str) -> str:
    return b.net.unsqueeze(x, [2, 3])


@block()
def expand(b: Builder, x: str) -> str:
    if b.image(x):
        y = b.net.op("GlobalAveragePool", x)
        target = [b.pick(1, b.channels(x)), *[3] * (len(b.shape(x)) - 2)]
    else:
        y = b.net.unsqueeze(x, [2])
        target = [1, 1, 4]
    return b.net.op("Expand", y, b.net.const(np.array(target, np.int64)))


@block()
def expand_weight(b: Builder, x: str) -> str:
    """A weight is spread by Expand before it meets the data."""
    w = b.per_channel(x)
    target = [b.pick(1, b.channels(x)), *b.ones(x)]
    return b.net.op("Mul", x, b.net.op("Expand", w, b.net.const(np.array(target, np.int64))))


@block()
def tile(b: Builder, x: str) -> str | None:
    repeats = [1] * len(b.shape(x))
    axis = b.number(1, len(repeats) - 1)
    repeats[axis] = 2
    if axis == 1 and b.channels(x) > 8:
        return None
    return b.net.op("Tile", x, b.net.const(np.array(repeats, np.int64)))


@block()
def identity(b: Builder, x: str) -> str:
    return b.net.op("Identity", x)
