"""Costs, compared with figures worked out by hand, torch's counter, and a simulation of living tensors."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import ModelProto, TensorProto, helper

from onnxprune.cost.cost import cost, model_cost
from onnxprune.normalize import normalize
from onnxprune.shapes import Shapes, concretize
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.nets import Sample, samples
from tests.toolbox import Net, analyze, inputs_of, removal, run_once


def counted(net: Net) -> Any:
    model = normalize(net.model())
    return model_cost(model, concretize(model))


def test_convolutions_by_hand() -> None:
    net = Net()
    x = net.input((2, 6, 9, 7))
    x = net.conv(x, 8, 3, strides=[2, 2], name="plain")  # 5 x 4 positions
    x = net.conv(x, 12, 3, group=4, name="grouped", bias=False)
    x = net.conv(x, 12, (5, 1), group=12, name="depthwise")
    w = net.weight(12, 2, 2, 2)
    x = net.op("ConvTranspose", x, w, group=3, strides=[2, 2], name="transposed")
    net.output(x)
    found = counted(net)
    layers = {layer.node: (layer.params, layer.macs, layer.output) for layer in found.layers}
    assert layers == {
        "plain": (8 * 6 * 9 + 8, 2 * 8 * 20 * 6 * 9, (2, 8, 5, 4)),
        "grouped": (12 * 2 * 9, 2 * 12 * 20 * 2 * 9, (2, 12, 5, 4)),
        "depthwise": (12 * 5 + 12, 2 * 12 * 20 * 5, (2, 12, 5, 4)),
        # Each of 2 x 12 x 20 inputs contributes to 2 outputs of its group at 4 positions.
        "transposed": (12 * 2 * 4, 2 * 12 * 20 * 2 * 4, (2, 6, 10, 8)),
    }
    assert found.params == sum(params for params, _, _ in layers.values())
    assert found.macs == sum(macs for _, macs, _ in layers.values())
    assert found.size == 4 * found.params


def test_products_by_hand() -> None:
    net = Net()
    x = net.input((2, 5, 6))
    x = net.linear(x, 8, name="linear")
    y = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]), name="scores")
    z = net.op("Einsum", y, x, equation="bij,bjc->bic", name="mixed")
    v = net.op("Gemm", net.op("Flatten", z), net.weight(3, 40), net.weight(3), transB=1, name="gemm")
    net.output(v)
    layers = {layer.node: (layer.params, layer.macs) for layer in counted(net).layers}
    assert layers == {
        "linear": (48, 2 * 5 * 6 * 8),
        "scores": (0, 2 * 5 * 5 * 8),
        "mixed": (0, 2 * 5 * 5 * 8),
        "gemm": (3 * 40 + 3, 2 * 3 * 40),
    }


def test_a_transposed_gemm() -> None:
    net = Net()
    net.output(net.op("Gemm", net.input((7, 2)), net.weight(7, 3), transA=1))
    assert counted(net).macs == 2 * 3 * 7


@pytest.mark.parametrize(
    ("operator", "gates"),
    [("RNN", 1), ("GRU", 3), ("LSTM", 4)],
)
def test_recurrent_by_hand(operator: str, gates: int) -> None:
    net = Net()
    x = net.input((9, 2, 4))
    w, r = net.weight(1, gates * 5, 4), net.weight(1, gates * 5, 5)
    net.output(net.op(operator, x, w, r, hidden_size=5))
    found = counted(net)
    assert found.params == gates * 5 * 9
    assert found.macs == 9 * 2 * gates * 5 * 9


def test_a_shared_weight_counts_once_and_works_twice() -> None:
    net = Net()
    w = net.weight(4, 4, 1, 1)
    x = net.op("Conv", net.input((1, 4, 3, 3)), w)
    net.output(net.op("Conv", x, w))
    found = counted(net)
    assert found.params == 16
    assert found.macs == 2 * 16 * 9


def test_indices_are_no_weights() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 4, 4)), 4)
    for dtype in (np.int32, np.int64):
        x = net.op("Gather", x, net.const(np.array([3, 1, 0], dtype)), axis=1)
        x = net.conv(x, 4)
    x = net.reshape(x, [1, 4, 16])
    net.output(x)
    assert counted(net).params == 16 + 16 + 16


def test_biases_of_quantized_layers_are_weights_and_zero_points_of_32_bits_are_none() -> None:
    net = Net()
    x, small, one = net.input((1, 3, 4, 4)), net.const(np.float32(0.1)), net.const(np.uint8(128))
    weight, zero = net.const(np.ones((8, 3, 1, 1), np.int8)), net.const(np.int8(0))
    bias = net.const(np.arange(8, dtype=np.int32))
    whole = net.op("QuantizeLinear", x, small, one)
    whole = net.op("QLinearConv", whole, small, one, weight, small, zero, small, one, bias)
    x = net.op("DequantizeLinear", whole, small, one)
    other = net.const(np.arange(5, dtype=np.int32)), small, net.const(np.int32(0))
    net.output(net.op("Gather", x, net.const(np.array([1, 0], np.int32)), axis=1))
    net.output(net.op("DequantizeLinear", *other))
    scales = 3  # and zero points of 8 bits
    found = counted(net)
    assert found.params == 24 + 8 + 5 + scales and found.size == 24 + 4 * 8 + 4 * 5 + 4 + 1 + 1


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(TensorProto.FLOAT16, 2), (TensorProto.BFLOAT16, 2), (TensorProto.DOUBLE, 8), (TensorProto.INT8, 1)],
)
def test_bytes_by_type(dtype: int, size: int) -> None:
    net = Net(opset=21)
    w = helper.make_tensor("w", dtype, [4, 4], np.ones(16, helper.tensor_dtype_to_np_dtype(dtype)).tobytes(), raw=True)
    net.tensors["w"] = w
    net.types["w"] = helper.make_tensor_type_proto(dtype, [4, 4])
    x = net.input((1, 4))
    net.output(net.op("MatMul", x, net.op("Cast", "w", to=TensorProto.FLOAT)))
    assert counted(net).size == 16 * size


def slow_peak(model: ModelProto, shapes: Shapes) -> int:
    """Simulate a run: after each node, add up the tensors that will still be read."""
    weights = {t.name for t in model.graph.initializer}
    sizes = {
        name: prod(shape) * helper.tensor_dtype_to_np_dtype(shapes.types[name]).itemsize
        for name, shape in shapes.shapes.items()
        if name and name not in weights and shapes.types[name] not in (TensorProto.INT64, TensorProto.BOOL)
    }
    outputs = {o.name for o in model.graph.output}
    alive = {i.name for i in model.graph.input}
    peak = sum(sizes.get(n, 0) for n in alive)
    for index, node in enumerate(model.graph.node):
        later = {n for other in model.graph.node[index + 1 :] for n in other.input} | outputs
        needed = {n for other in model.graph.node for n in other.input} | outputs
        alive |= {n for n in node.output if n in needed}
        peak = max(peak, sum(sizes.get(n, 0) for n in alive))
        alive = {n for n in alive if n in later}
    return peak


@given(samples(most=8))
@settings(max_examples=60)
def test_peak_memory_against_a_simulation(sample: Sample) -> None:
    graph = analyze(sample.model, sample.shapes)
    assert cost(PrunedGraph(graph)).memory == slow_peak(graph.proto, graph.shapes)
    assert model_cost(graph.proto, graph.shapes) == cost(PrunedGraph(graph))


def test_peak_memory_by_hand() -> None:
    net = Net()
    x = net.input((1, 2, 4, 4))  # 128 bytes
    y = net.conv(x, 4)  # 256
    z = net.op("Relu", y)  # 256
    net.output(net.op("Concat", z, x, axis=1))  # 384; x lives on until here
    # input, y and z: 640; then input, z and the output: 768
    assert counted(net).memory == 768


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Net:
    """Return a ResNet for ImageNet, at a quarter of the usual image size."""
    net = Net()

    def layer(x: str, out: int, kernel: int, stride: int = 1) -> str:
        pads = [kernel // 2] * 4
        return net.conv(x, out, kernel, bias=False, pads=pads, strides=[stride, stride])

    x = net.op("Relu", layer(net.input((1, 3, 56, 56)), 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            out = 4 * width if bottleneck else width
            if bottleneck:
                y = net.op("Relu", layer(x, width, 1))
                y = layer(net.op("Relu", layer(y, width, 3, stride)), out, 1)
            else:
                y = layer(net.op("Relu", layer(x, width, 3, stride)), width, 3)
            if stride > 1 or net.shape(x)[1] != out:
                x = layer(x, out, 1, stride)
            x = net.op("Relu", net.op("Add", x, y))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.op("Gemm", x, net.weight(net.shape(x)[1], 1000), net.weight(1000)))
    return net


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "params"),
    [
        # torchvision's 11,689,512 and 25,557,032 parameters, less 2 for each channel of a BatchNormalization.
        ((2, 2, 2, 2), False, 11_689_512 - 2 * 4_800),
        ((3, 4, 6, 3), True, 25_557_032 - 2 * 26_560),
    ],
    ids=["ResNet-18", "ResNet-50"],
)
def test_parameters_of_known_networks(blocks: tuple[int, ...], bottleneck: bool, params: int) -> None:
    assert counted(resnet(blocks, bottleneck)).params == params


@pytest.mark.dev
@pytest.mark.parametrize(("blocks", "bottleneck"), [((2, 2, 2, 2), False), ((3, 4, 6, 3), True)])
def test_macs_against_torch(blocks: tuple[int, ...], bottleneck: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    net = resnet(blocks, bottleneck)
    tensors = {name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for name, t in net.tensors.items()}
    values = dict(tensors)
    values["input0"] = torch.zeros(1, 3, 56, 56)
    functional = torch.nn.functional
    with FlopCounterMode(display=False) as counter:
        for node in net.nodes:
            inputs = [values[n] for n in node.input]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            match node.op_type:
                case "Conv":
                    stride, padding = attributes["strides"][0], attributes["pads"][0]
                    result = functional.conv2d(*inputs, stride=stride, padding=padding)
                case "MaxPool":
                    result = functional.max_pool2d(*inputs, 3, 2, 1)
                case "GlobalAveragePool":
                    result = inputs[0].mean((2, 3), keepdim=True)
                case "Gemm":
                    result = torch.addmm(inputs[2], inputs[0], inputs[1])
                case "Relu":
                    result = inputs[0].relu()
                case "Add":
                    result = inputs[0] + inputs[1]
                case "Flatten":
                    result = inputs[0].flatten(1)
                case other:
                    raise AssertionError(other)
            values[node.output[0]] = result
    assert 2 * counted(net).macs == counter.get_total_flops()


@given(samples(most=8))
@settings(max_examples=30)
def test_predictions_are_monotone(sample: Sample) -> None:
    """The cost never increases with each further group that loses channels."""
    graph = analyze(sample.model, sample.shapes)
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    partly = np.zeros_like(kept.removed)
    last = cost(PrunedGraph(graph))
    for group in graph.groups:
        partly[group.units] = kept.removed[group.units]
        now = cost(type(kept)(graph, partly.copy()))
        for key, value in now.totals().items():
            assert value <= last.totals()[key]
        if kept.removed[group.units].any():
            assert now.params < last.params
        last = now


def test_the_figures_are_of_the_sizes_that_were_asked() -> None:
    net = Net()
    x = net.input((1, 3, 8, 8), symbols={0: "N", 2: "H", 3: "W"})
    net.output(net.conv(x, 4, 3), symbols={0: "N", 2: "H", 3: "W"})
    small, large = (analyze(net.model(), {"input0": (1, 3, n, n)}) for n in (8, 16))
    assert 4 * cost(PrunedGraph(small)).macs == cost(PrunedGraph(large)).macs
    assert run_once(small.proto, inputs_of(small))["conv0_out0"].shape == (1, 4, 8, 8)
