"""Networks that PyTorch can't export, written node by node: the standard's own attention and norms, recurrence with all
its optional inputs, quantized operators, einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.toolbox import Net

WIDTH, HEADS, SHARED, HEAD = 32, 4, 2, 8
TOKENS = {0: "batch", 1: "sequence"}


def decoder() -> ModelProto:
    """RMSNormalization, RotaryEmbedding and Attention with grouped queries, on [batch, sequence, heads * head]."""
    net = Net(opset=23)
    x = _embedded(net)
    cos, sin = (net.between(-1, 1, 2, 6, HEAD // 2, name=name) for name in ("cos", "sin"))
    y = net.op("RMSNormalization", x, net.between(0.5, 1.5, WIDTH), axis=-1)
    q, k, v = net.linear(y, HEADS * HEAD), net.linear(y, SHARED * HEAD), net.linear(y, SHARED * HEAD)
    q = net.op("RotaryEmbedding", q, cos, sin, num_heads=HEADS)
    k = net.op("RotaryEmbedding", k, cos, sin, num_heads=SHARED)
    mixed = net.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=SHARED, is_causal=1)
    x = net.op("Add", x, net.linear(mixed, WIDTH))
    y = net.op("RMSNormalization", x, net.between(0.5, 1.5, WIDTH), axis=-1)
    gate, up = net.linear(y, 48), net.linear(y, 48)
    x = net.op("Add", x, net.linear(net.op("Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), up), WIDTH))
    net.output(net.linear(x, 11))
    return net.model()


def fused_decoder() -> ModelProto:
    """The same of ONNX Runtime's own operators: queries, keys and values in one tensor, rotated in the attention."""
    net = Net(opset=17, domains={"com.microsoft": 1})
    x = _embedded(net)
    last, total, head = net.const(np.array([5, 5], np.int32)), net.const(np.array([6], np.int32)), 2 * HEAD
    cos, sin = net.between(-1, 1, 6, head // 2), net.between(-1, 1, 6, head // 2)
    y = net.op("SimplifiedLayerNormalization", x, net.between(0.5, 1.5, WIDTH))
    (mixed,) = net.ops(
        *("com.microsoft:GroupQueryAttention", net.linear(y, (HEADS + 2 * SHARED) * head), "", "", "", ""),
        *(last, total, cos, sin),
        count=1,
        shapes=[(2, 6, HEADS * head)],
        num_heads=HEADS,
        kv_num_heads=SHARED,
        do_rotary=1,
    )
    y, _, _, x = net.ops(
        *("com.microsoft:SkipSimplifiedLayerNormalization", x, net.linear(mixed, WIDTH), net.between(0.5, 1.5, WIDTH)),
        count=4,
        shapes=[(2, 6, WIDTH)] * 4,
    )
    net.nodes[-1].output[1:3] = ["", ""]
    gate, up = net.linear(y, 48), net.linear(y, 48)
    x = net.op("Add", x, net.linear(net.op("Mul", net.op("com.microsoft:QuickGelu", gate, alpha=1.0), up), WIDTH))
    net.output(net.linear(x, 11))
    return net.model(check=False)


def attention_by_head() -> ModelProto:
    """LayerNormalization and Attention on [batch, heads, sequence, head], with an additive mask, dynamic sizes."""
    net = Net(opset=23)
    x = _embedded(net, TOKENS)
    y = net.op("LayerNormalization", x, net.between(0.5, 1.5, WIDTH), net.weight(WIDTH), axis=-1)
    q, k, v = (
        net.op("Transpose", net.reshape(net.linear(y, HEADS * HEAD), [0, 0, HEADS, HEAD]), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    mixed = net.op("Attention", q, k, v, scale=0.3, softcap=5.0)
    joined = net.reshape(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1])
    x = net.op("Add", x, net.linear(joined, WIDTH))
    net.output(net.linear(net.op("Gelu", net.linear(x, 40)), 7), TOKENS)
    return net.model()


def group_norms() -> ModelProto:
    """GroupNormalization, and the Reshape around an InstanceNormalization that older exporters write for it."""
    net = Net(opset=21)
    x = net.conv(net.input([2, 3, 8, 8], symbols={0: "batch"}), 16, 3)
    x = net.ops(
        *("GroupNormalization", x, net.between(0.5, 1.5, 16), net.weight(16)),
        count=1,
        shapes=[(2, 16, 8, 8)],
        num_groups=4,
    )[0]
    x = net.conv(net.op("Relu", x), 24, 3)
    ones, zeros = net.const(np.ones(6, np.float32)), net.const(np.zeros(6, np.float32))
    flat = net.op("InstanceNormalization", net.reshape(x, [0, 6, -1]), ones, zeros)
    x = net.reshape(flat, [0, 24, 8, 8])
    x = net.op("Add", net.op("Mul", x, net.between(0.5, 1.5, 24, 1, 1)), net.weight(24, 1, 1))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", x)))
    net.output(net.linear(pooled, 5), {0: "batch"})
    return net.model()


def lstm_with_everything() -> ModelProto:
    """A bidirectional LSTM with every optional input, a clip and other activations; all outputs are read."""
    net, hidden = Net(opset=17), 16
    x, lengths = net.input([5, 2, 6]), net.const(np.array([5, 3], np.int32))
    first, cell = net.weight(2, 2, hidden), net.weight(2, 2, hidden)
    w, r = net.weight(2, 4 * hidden, 6, fan_in=6), net.weight(2, 4 * hidden, hidden, fan_in=hidden)
    y, last, memory = net.ops(
        "LSTM",
        *(x, w, r, net.weight(2, 8 * hidden), lengths, first, cell, net.weight(2, 3 * hidden)),
        count=3,
        hidden_size=hidden,
        direction="bidirectional",
        clip=3.0,
        activations=["HardSigmoid", "Tanh", "Tanh", "Sigmoid", "Softsign", "Tanh"],
    )
    steps = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, 2 * hidden])
    both = net.op("Concat", last, memory, axis=0)
    joined = net.reshape(net.op("Transpose", both, perm=[1, 0, 2]), [0, 4 * hidden])
    net.output(net.linear(net.op("Tanh", net.linear(steps, 10)), 3))
    net.output(net.linear(joined, 3))
    return net.model()


def gru_and_rnn() -> ModelProto:
    """A reversed GRU over the outputs of a bidirectional RNN, whose state a linear layer gives."""
    net, hidden = Net(opset=17), 12
    x, context = net.input([5, 2, 6], symbols={0: "steps", 1: "batch"}), net.input([2, 4], symbols={0: "batch"})
    start = net.op("Relu", net.linear(context, 2 * hidden))
    start = net.op("Transpose", net.reshape(start, [0, 2, hidden]), perm=[1, 0, 2])
    w, r = net.weight(2, hidden, 6, fan_in=6), net.weight(2, hidden, hidden, fan_in=hidden)
    y = net.op("RNN", x, w, r, net.weight(2, 2 * hidden), "", start, hidden_size=hidden, direction="bidirectional")
    steps = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
    w, r = net.weight(1, 48, 2 * hidden, fan_in=2 * hidden), net.weight(1, 48, 16, fan_in=16)
    _, last = net.ops(
        "GRU", steps, w, r, net.weight(1, 96), count=2, hidden_size=16, direction="reverse", linear_before_reset=1
    )
    net.output(net.linear(net.squeeze(last, [0]), 3), {0: "batch"})
    return net.model()


def einsum_mixture() -> ModelProto:
    """Einsum in many forms: attention with an ellipsis, a bilinear form, an implicit output."""
    net = Net(opset=17)
    x = net.linear(net.input([2, 5, 6], symbols=TOKENS), WIDTH)
    q, k, v = (
        net.op("Einsum", x, net.weight(WIDTH, HEADS, HEAD, fan_in=WIDTH), equation="...c,chd->...hd") for _ in range(3)
    )
    weights = net.op("Softmax", net.op("Einsum", q, k, equation="bnhd,bmhd->bhnm"), axis=-1)
    mixed = net.op("Einsum", weights, v, equation="bhnm,bmhe->bnhe")
    y = net.op("Einsum", mixed, net.weight(HEADS, HEAD, WIDTH, fan_in=WIDTH), equation="bnhe,hec->bnc")
    a, b = net.linear(y, 12), net.linear(y, 10)
    both = net.op("Einsum", a, net.weight(12, 10, 8, fan_in=30), b, equation="bni,ijk,bnj->bnk")
    net.output(net.op("Einsum", both, net.weight(8, 3, fan_in=8), equation="bnk,kt"), TOKENS)
    return net.model()


def quantized_operators() -> ModelProto:
    """QLinearConv, dense, grouped and depthwise, per tensor and per channel, and QLinearMatMul."""
    net = Net(opset=17)
    scale, zero = net.const(0.02), net.const(np.uint8(120))
    x = net.op("QuantizeLinear", net.input([2, 3, 8, 8], symbols={0: "batch"}), scale, zero)
    for channels, width, group, each in ((3, 16, 1, False), (16, 16, 16, True), (16, 24, 4, True), (24, 12, 1, True)):
        w = net.const(net.rng.integers(-90, 90, (width, channels // group, 3, 3)).astype(np.int8))
        bias = net.const(net.rng.integers(-900, 900, width).astype(np.int32))
        w_scale = net.between(0.002, 0.006, width) if each else net.const(0.004)
        w_zero = net.const(np.zeros(width if each else (), np.int8))
        x = net.op(
            "QLinearConv",
            *(x, scale, zero, w, w_scale, w_zero, scale, zero, bias),
            group=group,
            pads=[1, 1, 1, 1],
        )
    pooled = net.reduce("ReduceMean", net.op("DequantizeLinear", x, scale, zero), [2, 3], keepdims=0)
    x = net.op("QuantizeLinear", pooled, scale, zero)
    for width, each in ((20, True), (5, False)):
        w = net.const(net.rng.integers(0, 255, (net.shape(x)[1], width)).astype(np.uint8))
        w_scale = net.between(0.01, 0.02, width) if each else net.const(0.01)
        w_zero = net.const(np.full(width if each else (), 128, np.uint8))
        x = net.op("QLinearMatMul", x, scale, zero, w, w_scale, w_zero, scale, zero)
    net.output(net.op("DequantizeLinear", x, scale, zero), {0: "batch"})
    return net.model()


def integer_operators() -> ModelProto:
    """DynamicQuantizeLinear before ConvInteger and MatMulInteger, rescaled behind, as quantize_dynamic writes it."""
    net = Net(opset=17)
    x = net.input([2, 3, 8, 8], symbols={0: "batch"})
    for channels, width, group in ((3, 16, 1), (16, 16, 16), (16, 12, 1)):
        w = net.const(net.rng.integers(0, 255, (width, channels // group, 3, 3)).astype(np.uint8))
        x = net.op("Relu", _rescaled(net, "ConvInteger", x, w, net.const(np.uint8(128)), group=group))
    x = net.reduce("ReduceMean", x, [2, 3], keepdims=0)
    for width in (20, 5):
        w = net.const(net.rng.integers(0, 255, (net.shape(x)[1], width)).astype(np.uint8))
        x = _rescaled(net, "MatMulInteger", x, w, net.const(np.full(width, 128, np.uint8)))
    net.output(x, {0: "batch"})
    return net.model()


def blocked_weights() -> ModelProto:
    """MatMuls whose 4 and 8 bit weights have a scale and zero point for each block of input channels."""
    net = Net(opset=21)
    x = net.input([2, 16], symbols={0: "batch"})
    for channels, width, block, kind in ((16, 32, 8, "int8"), (32, 48, 16, "uint4"), (48, 5, 4, "int8")):
        low, high = (0, 16) if kind == "uint4" else (-100, 100)
        values = net.rng.integers(low, high, (channels, width))
        dtype = helper.tensor_dtype_to_np_dtype(TensorProto.UINT4) if kind == "uint4" else np.dtype(kind)
        w = net.const(values.astype(dtype))
        scale = net.between(0.001, 0.003, channels // block, width)
        zero = net.const(net.rng.integers(max(low, -5), 8, (channels // block, width)).astype(dtype))
        weight = net.op("DequantizeLinear", w, scale, zero, axis=0, block_size=block)
        x = net.op("Relu", net.op("MatMul", x, weight)) if width > 5 else net.op("MatMul", x, weight)
    net.output(x, {0: "batch"})
    return net.model()


def channels_last() -> ModelProto:
    """As converters from TensorFlow write it: Transposes around convolutions, biases and norms on the last axis, SAME
    padding, a depthwise weight that is reshaped, a mean over rows and columns."""
    net = Net(opset=13)
    x = net.input([2, 8, 8, 3], symbols={0: "batch"})
    x = _last(net, "Conv", x, net.weight(16, 3, 3, 3, fan_in=27), auto_pad="SAME_UPPER", strides=[2, 2])
    x = net.op("Relu", net.op("Add", x, net.weight(16)))
    kernel = net.reshape(net.weight(3, 3, 16, 1, fan_in=9), [3, 3, 1, 16])
    kernel = net.op("Transpose", kernel, perm=[3, 2, 0, 1])
    y = _last(net, "Conv", x, kernel, group=16, auto_pad="SAME_LOWER")
    y = net.op("Add", net.op("Mul", y, net.between(0.5, 1.5, 16)), net.weight(1, 1, 1, 16))
    y = net.op("Min", net.op("Max", y, net.const(0.0)), net.const(6.0))
    y = _last(net, "Conv", y, net.weight(16, 16, 1, 1, fan_in=16))
    x = net.pad(net.op("Add", x, y), [0, 0, 0, 0, 0, 1, 1, 0])
    x = _last(net, "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    pooled = net.reduce("ReduceMean", x, [1, 2], keepdims=0)
    net.output(net.op("Add", net.linear(pooled, 5), net.weight(5)), {0: "batch"})
    return net.model()


def branches() -> ModelProto:
    """An If whose branches read a tensor from outside: its channels stay, those of all else may leave."""
    net = Net(opset=17)
    x = net.input([2, 3, 8, 8], symbols={0: "batch"})
    x = net.op("Relu", net.conv(net.op("Relu", net.conv(x, 16, 3)), 8, 3, name="captured"))
    flag = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.const(0.1))
    bodies = {}
    for name, scale in (("then_branch", 2.0), ("else_branch", -1.0)):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8, 8, 8])
        factor = numpy_helper.from_array(np.array(scale, np.float32), f"{name}_factor")
        node = helper.make_node("Mul", [x, factor.name], [name], name=f"{name}_mul")
        bodies[name] = helper.make_graph([node], name, [], [out], [factor])
    yes, no = bodies["then_branch"], bodies["else_branch"]
    y = net.ops("If", flag, count=1, shapes=[(2, 8, 8, 8)], then_branch=yes, else_branch=no)[0]
    net.types[y].tensor_type.elem_type = TensorProto.FLOAT
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(y, 12, 3))))
    net.output(net.linear(pooled, 5), {0: "batch"})
    return net.model()


def local_functions() -> ModelProto:
    """A block that is a function of the model's own, called twice."""
    net = Net(opset=17, domains={"local": 1})
    x = net.input([2, 6], symbols={0: "batch"})
    x = net.linear(x, 16)
    for _ in range(2):
        up, down = net.weight(16, 24, fan_in=16), net.weight(24, 16, fan_in=24)
        x = net.ops("local:Block", x, up, down, count=1, shapes=[(2, 16)])[0]
    net.output(net.linear(x, 5), {0: "batch"})
    model = net.model(check=False)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Softplus", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "down"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Block", ["x", "up", "down"], ["y"], nodes, opsets))
    return model


BY_HAND: Mapping[str, Callable[[], ModelProto]] = {
    f.__name__: f
    for f in (
        attention_by_head,
        blocked_weights,
        branches,
        channels_last,
        decoder,
        einsum_mixture,
        fused_decoder,
        group_norms,
        gru_and_rnn,
        integer_operators,
        local_functions,
        lstm_with_everything,
        quantized_operators,
    )
}


def _embedded(net: Net, symbols: Mapping[int, str] | None = None) -> str:
    ids = net.input([2, 6], "ids", TensorProto.INT64, symbols)
    return net.op("Gather", net.weight(11, WIDTH, name="tokens"), ids)


def _rescaled(net: Net, operator: str, x: str, w: str, zero: str, **attributes: Any) -> str:
    q, scale, point = net.ops("DynamicQuantizeLinear", x, count=3)
    if operator == "ConvInteger":
        attributes["pads"] = [1, 1, 1, 1]
    total = net.op("Cast", net.op(operator, q, w, point, zero, **attributes), to=TensorProto.FLOAT)
    return net.op("Mul", total, net.op("Mul", scale, net.const(0.004)))


def _last(net: Net, operator: str, x: str, *weights: str, **attributes: Any) -> str:
    y = net.op(operator, net.op("Transpose", x, perm=[0, 3, 1, 2]), *weights, **attributes)
    return net.op("Transpose", y, perm=[0, 2, 3, 1])
