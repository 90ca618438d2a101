"""Movements that few networks make."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.property.builder import Builder, block


@block()
def doubled(b: Builder, x: str) -> str:
    """A tensor meets itself."""
    if b.flag() and b.channels(x) <= 8:
        return b.net.op("Concat", x, b.net.op("Neg", x), x, axis=1)
    return b.net.op(b.pick("Add", "Mul"), x, x)


@block(since=10)
def meets_its_reverse(b: Builder, x: str) -> str | None:
    """A channel is tied to its mirror image."""
    if b.channels(x) < 3:
        return None
    return b.net.op("Add", x, b.net.slice(x, [-1], [-(2**31)], [1], [-1]))


@block(on="square", sized=True)
def fold_into_batch(b: Builder, x: str) -> str:
    """Each channel is treated as an image of its own."""
    _, c, h, w = b.shape(x)
    y = b.net.conv(b.net.reshape(x, [-1, 1, h, w]), 1, 3)
    return b.net.reshape(y, [-1, c, h, w])


@block(on="square", sized=True)
def space_to_channels(b: Builder, x: str) -> str | None:
    """SpaceToDepth out of Reshape and Transpose, as PyTorch's pixel_unshuffle."""
    if b.channels(x) > 4:
        return None
    n, c, h, w = b.shape(x)
    if h % 2 or w % 2:
        return None
    y = b.net.reshape(x, b.batch_free([n, c, h // 2, 2, w // 2, 2]))
    y = b.net.op("Transpose", y, perm=b.pick([0, 1, 3, 5, 2, 4], [0, 3, 5, 1, 2, 4]))
    return b.net.reshape(y, b.batch_free([n, 4 * c, h // 2, w // 2]))


@block(on="square", since=10)
def focus(b: Builder, x: str) -> str | None:
    """YOLOX's stem: four subsampled images side by side."""
    if b.channels(x) > 4 or b.shape(x)[2] % 2:
        return None
    end = 2**31 - 1
    parts = [b.net.slice(x, [i, j], [end, end], [2, 3], [2, 2]) for i in (0, 1) for j in (0, 1)]
    return b.net.op("Concat", *parts, axis=1)


@block(on="image")
def joined_batches(b: Builder, x: str) -> str | None:
    """Two tensors share a layer by way of the batch axis, and part again."""
    if b.symbolic:
        return None
    y = b.net.op("Concat", x, b.net.op("Tanh", x), axis=0)
    y, z = b.net.split(b.net.conv(y, b.number(2, 6)), [b.batch, b.batch], 0)
    return b.net.op("Mul", y, b.net.op("Sigmoid", z))


@block(since=11)
def captured(b: Builder, x: str) -> str:
    """Bodies of an If give what they read from outside, which pins it."""
    kind = helper.make_tensor_value_info("inner", 1, None)
    bodies: dict[str, Any] = {
        f"{branch}_branch": helper.make_graph([helper.make_node(op, [x], ["inner"])], branch, [], [kind])
        for branch, op in (("then", "Relu"), ("else", "Neg"))
    }
    y = b.net.ops("If", b.net.const(np.array(True)), count=1, shapes=[b.shape(x)], **bodies)[0]
    b.net.types[y].tensor_type.elem_type = 1
    return b.net.op("Add", x, y)


@block(on="image", since=11)
def layers_within(b: Builder, x: str) -> str:
    """Each body of an If has two layers: what is between them leaves, in each body by itself."""
    ones = [1] * (len(b.shape(x)) - 2)
    tag, bodies = len(b.net.nodes), dict[str, Any]()
    for branch in ("then", "else"):
        width, name = b.pick(4, 6), f"{branch}{tag}"
        shapes = {f"{name}_v": (width, b.channels(x), *ones), f"{name}_w": (4, width, *ones)}
        weights = [
            numpy_helper.from_array(b.net.rng.normal(0, s[1] ** -0.5, s).astype("f"), n) for n, s in shapes.items()
        ]
        nodes = [
            helper.make_node("Conv", [x, f"{name}_v"], [f"{name}_a"]),
            helper.make_node("LeakyRelu", [f"{name}_a"], [f"{name}_b"]),
            helper.make_node("Conv", [f"{name}_b", f"{name}_w"], [f"{name}_c"]),
        ]
        result = helper.make_tensor_value_info(f"{name}_c", 1, None)
        bodies[f"{branch}_branch"] = helper.make_graph(nodes, name, [], [result], weights)
    shape = [b.shape(x)[0], 4, *b.shape(x)[2:]]
    y = b.net.ops("If", b.net.const(np.array(b.flag())), count=1, shapes=[shape], **bodies)[0]
    b.net.types[y].tensor_type.elem_type = 1
    return b.net.conv(y, b.pick(4, 6))


@block(on="image", sized=True)
def expand_like(b: Builder, x: str) -> str:
    """Expand to the measured shape of another tensor."""
    pooled = b.net.op("GlobalAveragePool", x)
    (y,) = b.net.ops("Expand", pooled, b.net.op("Shape", b.net.op("Relu", x)), count=1, shapes=[b.shape(x)])
    return b.net.op("Mul", x, y)


@block()
def zeros_like(b: Builder, x: str) -> str:
    """Channels of constants, as many as were measured, are joined on or added."""
    value = helper.make_tensor("value", 1, [1], [b.pick(0.0, 0.5)])
    (y,) = b.net.ops("ConstantOfShape", b.net.op("Shape", x), count=1, shapes=[b.shape(x)], value=value)
    b.net.types[y].tensor_type.elem_type = 1
    if b.flag() or b.channels(x) > 8:
        return b.net.op("Add", x, y)
    return b.net.op("Concat", x, y, axis=1)


@block(on="image")
def tied_decoder(b: Builder, x: str) -> str:
    """One weight reads channels in a convolution and makes them in a transposed one."""
    c, inner, ones = b.channels(x), b.number(2, 5), b.ones(x)
    w = b.net.weight(inner, c, *ones, fan_in=c)
    return b.net.op("ConvTranspose", b.net.op("Relu", b.net.op("Conv", x, w)), w)


@block(on="square")
def channel_attention(b: Builder, x: str) -> str | None:
    """ECA: a convolution along the channel axis, which mixes neighbors."""
    if b.channels(x) < 3:
        return None
    pooled = b.net.squeeze(b.net.op("GlobalAveragePool", x), [3])
    y = b.net.conv(b.net.op("Transpose", pooled, perm=[0, 2, 1]), 1, 3, bias=False)
    return b.net.op("Mul", x, b.net.op("Sigmoid", b.net.unsqueeze(b.net.op("Transpose", y, perm=[0, 2, 1]), [3])))


@block(on="square")
def channel_pool(b: Builder, x: str) -> str | None:
    """Channels are pooled as if they were positions."""
    if b.channels(x) < 3:
        return None
    y = b.net.op("Transpose", x, perm=[0, 2, 1, 3])
    y = b.net.op(b.pick("MaxPool", "AveragePool"), y, kernel_shape=[2, 1], strides=[1, 1])
    return b.net.op("Transpose", y, perm=[0, 2, 1, 3])


@block(on="square", sized=True)
def bilinear(b: Builder, x: str) -> str:
    """Two sets of channels melt into one axis."""
    n, _, h, w = b.shape(x)
    first, second = b.number(2, 4), b.number(2, 4)
    y = b.net.reshape(b.net.conv(x, first), b.batch_free([n, first, h * w]))
    z = b.net.reshape(b.net.conv(x, second), b.batch_free([n, second, h * w]))
    product = b.net.op("MatMul", y, b.net.op("Transpose", z, perm=[0, 2, 1]))
    return b.net.reshape(b.net.op("Mul", product, b.net.const(0.1)), b.batch_free([n, first * second]))


@block(on="image")
def sequential_groups(b: Builder, x: str) -> str:
    """Two grouped convolutions whose numbers of groups don't divide each other's channels alike."""
    y = b.net.conv(b.net.conv(x, 12), 12, group=b.pick(2, 3, 4, 6))
    return b.net.conv(b.net.op("Relu", y), 12, group=b.pick(2, 3, 4, 6))
