"""Layers as linear maps against ONNX Runtime: rows of features times the matrix are what the operator puts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.recover.layers import LeftOut, LinearLayer, find_layers, left_out
from tests.toolbox import Net, run_once

Array = NDArray[Any]
ALL = 1 << 20


@dataclass(frozen=True)
class Case:
    """One node to be looked at: its operator, attributes, and the shapes of what it reads."""

    operator: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    bias: int | None = None  # how many
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def model(self, rng: np.random.Generator, dtype: type = np.float32) -> ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        constants = {"w": self.w} | ({"b": (self.bias,)} if self.bias else {})
        node = helper.make_node(self.operator, ["x", *constants], ["y"], name="layer", **self.attributes)
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", kind, self.x)],
            [helper.make_tensor_value_info("y", kind, None)],
            [numpy_helper.from_array(rng.standard_normal(s).astype(dtype), n) for n, s in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights_of(model: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def the_layer(model: ModelProto) -> LinearLayer:
    (layer,) = find_layers(model)
    return layer


def apply(layer: LinearLayer, features: Array, matrix: Array, bias: Array | float) -> Array:
    """Multiply features (positions, groups, features) with matrices (groups, outputs, features)."""
    product = np.stack([features[:, g] @ matrix[g].T for g in range(layer.groups)], axis=1)
    return np.asarray(product.reshape(len(features), -1) + bias)


def compare(case: Case, seed: int, count: int = ALL) -> None:
    rng = np.random.default_rng(seed)
    model = case.model(rng)
    layer, weights = the_layer(model), weights_of(model)
    x = rng.standard_normal(case.x).astype(np.float32)
    y = run_once(model, {"x": x})["y"]
    channels = y.shape[-1] if layer.channels_last else y.shape[1]
    features, (values, again) = layer.sample(x, [y, 2 * y], count, rng)
    assert len(features) == min(count, y.size // channels)
    assert features.dtype == values.dtype == np.float64
    np.testing.assert_array_equal(again, 2 * values)

    matrix, bias = layer.matrix(weights["w"]), weights.get("b", 0.0)
    assert matrix.shape == (case.attributes.get("group", 1), channels // layer.groups, features.shape[2])
    # What is sampled are positions of the output, each at most once.
    rows = y.reshape(-1, channels) if layer.channels_last else np.moveaxis(y, 1, -1).reshape(-1, channels)
    if count == ALL:
        np.testing.assert_array_equal(np.sort(values, axis=0), np.sort(rows, axis=0))
    np.testing.assert_allclose(apply(layer, features, matrix, bias), values, rtol=1e-4, atol=1e-4)
    # The control: with the weight that matters most a little off, they differ.
    group, feature = np.unravel_index((features**2).sum(axis=0).argmax(), features.shape[1:])
    if features[:, group, feature].any():
        matrix[group, 0, feature] += 0.5
        assert not np.allclose(apply(layer, features, matrix, bias), values, rtol=1e-4, atol=1e-2)


def check_inverse(case: Case, dtype: type) -> None:
    model = case.model(np.random.default_rng(0), dtype)
    layer, w = the_layer(model), weights_of(model)["w"]
    back = layer.weight_of(layer.matrix(w), w)
    assert back.dtype == w.dtype
    np.testing.assert_array_equal(back, w)


@st.composite
def convolutions(draw: st.DrawFn, operator: str) -> Case:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    group = draw(st.integers(1, 3))
    inputs, outputs = group * draw(st.integers(1, 3)), group * draw(st.integers(1, 3))
    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    auto = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if auto != "NOTSET" or draw(st.booleans()):
        attributes["auto_pad"] = auto
    if auto.startswith("SAME") and operator == "Conv":
        attributes["dilations"] = dilations = [1] * rank  # ONNX Runtime has no others here
    if auto == "NOTSET" and draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, min(r, 2))) for r in reach * 2]
    if operator == "ConvTranspose" and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    # Large enough that every output size is positive
    size = [draw(st.integers(r + 1, r + 4)) for r in reach]
    channels = (outputs, inputs // group) if operator == "Conv" else (inputs, outputs // group)
    bias = outputs if draw(st.booleans()) else None
    return Case(operator, (draw(st.integers(1, 2)), inputs, *size), (*channels, *kernel), bias, attributes)


@settings(max_examples=120)
@given(convolutions("Conv"), st.integers(0, 2**16))
def test_convolutions(case: Case, seed: int) -> None:
    compare(case, seed)


@settings(max_examples=120)
@given(convolutions("ConvTranspose"), st.integers(0, 2**16))
def test_transposed_convolutions(case: Case, seed: int) -> None:
    compare(case, seed)


CASES = {
    "strided": Case("Conv", (2, 3, 9, 7), (4, 3, 3, 2), 4, {"strides": [2, 3]}),
    "asymmetric pads": Case("Conv", (2, 3, 6, 5), (4, 3, 3, 3), 4, {"pads": [0, 2, 1, 0]}),
    "dilated": Case("Conv", (1, 2, 9, 9), (3, 2, 3, 3), None, {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "grouped": Case("Conv", (2, 6, 5, 5), (9, 2, 3, 3), 9, {"group": 3}),
    "depthwise": Case("Conv", (2, 4, 5, 5), (4, 1, 3, 3), 4, {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise, two each": Case("Conv", (2, 4, 5, 5), (8, 1, 3, 3), 8, {"group": 4}),
    "1d": Case("Conv", (2, 3, 11), (4, 3, 5), 4, {"strides": [2], "pads": [3, 1]}),
    "3d": Case("Conv", (1, 2, 4, 5, 3), (3, 2, 2, 3, 1), 3, {"pads": [0, 1, 0, 1, 0, 1]}),
    **{
        f"{auto}, {stride}": Case("Conv", (2, 2, 7, 8), (3, 2, 3, 2), 3, {"auto_pad": auto, "strides": [stride] * 2})
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for stride in (1, 2, 3)
    },
    "transposed": Case("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 3), 4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed, output padding": Case(
        "ConvTranspose",
        (2, 3, 4, 5),
        (3, 4, 3, 3),
        4,
        {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]},
    ),
    "transposed, grouped": Case("ConvTranspose", (2, 6, 4, 4), (6, 3, 2, 2), 6, {"group": 2, "strides": [2, 2]}),
    "transposed, depthwise": Case("ConvTranspose", (1, 3, 4, 4), (3, 1, 4, 4), None, {"group": 3, "strides": [2, 2]}),
    "transposed, dilated": Case("ConvTranspose", (1, 2, 4), (2, 3, 3), 3, {"dilations": [2], "strides": [3]}),
    **{
        f"transposed, {auto}, {kernel}": Case(
            "ConvTranspose",
            (1, 2, 4, 3),
            (2, 3, kernel, kernel),
            3,
            {"auto_pad": auto, "strides": [2, 2]},
        )
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for kernel in (2, 3, 4, 5)
    },
    "matmul": Case("MatMul", (5, 3), (3, 4)),
    "matmul of sequences": Case("MatMul", (2, 5, 3), (3, 4)),
    "matmul of heads": Case("MatMul", (2, 3, 5, 4), (4, 6)),
    "matmul of a vector": Case("MatMul", (3,), (3, 4)),
    "gemm": Case("Gemm", (5, 3), (3, 4), 4),
    "gemm, transB=0": Case("Gemm", (5, 3), (3, 4), 4, {"transB": 0}),
    "gemm, transB=1": Case("Gemm", (5, 3), (4, 3), 4, {"transB": 1}),
    "gemm without bias": Case("Gemm", (5, 3), (4, 3), None, {"transB": 1}),
}

by_name = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@by_name
def test_every_position(case: Case) -> None:
    compare(case, 0)


@by_name
def test_a_few_positions(case: Case) -> None:
    compare(case, 1, count=3)


@by_name
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_weight_comes_back_from_its_matrix(case: Case, dtype: type) -> None:
    check_inverse(case, dtype)


@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("output", [[8, 9], [9, 8], [7, 7]])
@pytest.mark.parametrize("padding", [[0, 0], [1, 0]])
def test_a_transposed_convolution_with_a_given_output_shape(auto: str, output: list[int], padding: list[int]) -> None:
    """The padding follows from the output's shape, and replaces the attribute."""
    attributes = {"output_shape": output, "strides": [2, 2], "output_padding": padding, "auto_pad": auto}
    if auto == "NOTSET":
        attributes["pads"] = [1, 1, 1, 1]
    compare(Case("ConvTranspose", (1, 2, 4, 4), (2, 3, 3, 3), 3, attributes), 0)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (-2.0, 0.25)])
def test_gemm_with_factors(alpha: float, beta: float, transposed: int) -> None:
    """Such a node isn't repaired: its weights aren't the matrix that it multiplies by."""
    w = (4, 3) if transposed else (3, 4)
    case = Case("Gemm", (5, 3), w, 4, {"alpha": alpha, "beta": beta, "transB": transposed})
    layers = find_layers(case.model(np.random.default_rng(0)))
    assert len(layers) == (1 if alpha == beta == 1 else 0)


@pytest.mark.parametrize("shape", [(), (1,), (5, 4), (5, 1)])
def test_gemm_with_a_bias_of_another_shape(shape: tuple[int, ...]) -> None:
    """What isn't one number for each output is no bias that could be fitted."""
    model = Case("Gemm", (5, 3), (3, 4), 4).model(np.random.default_rng(0))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), "b"))
    assert not find_layers(model)


def test_a_computed_bias_is_none_that_could_be_fitted() -> None:
    constants = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    nodes = [make("Relu", ["b"], ["c"]), make("Gemm", ["x", "w", "c"], ["y"])]
    assert not find_layers(network(*nodes, constants=constants))


# Which nodes are layers


def network(*nodes: Any, constants: Mapping[str, Array]) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "v")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


make = helper.make_node
SQUARE = {"w": np.eye(4, dtype=np.float32)}


def test_layers_come_in_order_with_their_tensors() -> None:
    model = network(
        make("Conv", ["x", "k", "b"], ["a"], name="first", group=2),
        make("GlobalAveragePool", ["a"], ["p"], name="pool"),
        make("Flatten", ["p"], ["f"], name="flat"),
        make("Gemm", ["f", "g", "c"], ["h"], name="second", transB=1),
        make("MatMul", ["h", "w"], ["y"], name="third"),
        constants={
            "k": np.zeros((4, 1, 3, 3), np.float32),
            "b": np.zeros(4, np.float32),
            "g": np.zeros((4, 4), np.float32),
            "c": np.zeros(4, np.float32),
            **SQUARE,
        },
    )
    found = [(la.node.name, la.x, la.weight, la.bias, la.y, la.groups) for la in find_layers(model)]
    assert found == [
        ("first", "x", "k", "b", "a", 2),
        ("second", "f", "g", "c", "h", 1),
        ("third", "h", "w", None, "y", 1),
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([make("MatMul", ["x", "w"], ["a"]), make("MatMul", ["a", "w"], ["y"])], id="a shared weight"),
        pytest.param([make("MatMul", ["w", "x"], ["y"])], id="a weight on the left"),
        pytest.param([make("MatMul", ["x", "v"], ["y"])], id="no weight"),
        pytest.param([make("Gemm", ["x", "w"], ["y"], transA=1)], id="transA"),
        pytest.param([make("MatMul", ["x", "w"], ["y"], domain="com.example")], id="another domain"),
        pytest.param([make("Add", ["x", "w"], ["y"])], id="no contraction"),
        pytest.param([make("Relu", ["w"], ["a"]), make("MatMul", ["x", "a"], ["y"])], id="a computed weight"),
        pytest.param([make("MatMul", ["x", "w"], ["a"]), make("Add", ["a", "w"], ["y"])], id="a weight read twice"),
    ],
)
def test_no_layers(nodes: list[Any]) -> None:
    assert not find_layers(network(*nodes, constants=SQUARE))


def test_stacked_weights_and_integers_are_no_layers() -> None:
    node = make("MatMul", ["x", "w"], ["y"])
    assert not find_layers(network(node, constants={"w": np.zeros((2, 4, 4), np.float32)}))
    assert not find_layers(network(node, constants={"w": np.zeros((4, 4), np.int32)}))


def test_a_weight_that_a_branch_reads_is_shared() -> None:
    branch = helper.make_graph(
        [make("Identity", ["w"], ["o"])], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    )
    model = network(
        make("MatMul", ["x", "w"], ["a"]),
        make("If", ["on"], ["z"], then_branch=branch, else_branch=branch),
        make("Add", ["a", "z"], ["y"]),
        constants={**SQUARE, "on": np.array(True)},
    )
    assert not find_layers(model)


def test_layers_that_no_repair_reaches_are_listed_with_their_reasons() -> None:
    """A convolution between two matrix products, a shared weight, integers, and a recurrent layer."""
    net = Net()
    x = net.linear(net.input((3, 2, 4), "x"), 4, name="plain")
    shared = net.weight(4, 4, name="shared_w")
    for name in ("once", "twice"):
        x = net.op("MatMul", x, shared, name=name)
    x = net.op("MatMul", net.weight(3, 2, 2, name="left_w"), x, name="turned")
    x = net.op("MatMul", x, net.op("Relu", net.weight(4, 4), name="made"), name="computed")
    hidden, _ = net.ops("LSTM", x, net.weight(1, 16, 4), net.weight(1, 16, 4), count=2, name="lstm", hidden_size=4)
    net.output(net.linear(net.squeeze(hidden, [1]), 2, name="head"))
    model = net.model()
    everything = {name for node in model.graph.node for name in node.input}
    shares = "other layers share its weight"
    assert [layer.node.name for layer in find_layers(model)] == ["plain", "head"]
    assert left_out(model, everything) == (
        LeftOut("once", "MatMul", shares),
        LeftOut("twice", "MatMul", shares),
        LeftOut("turned", "MatMul", "its weight is its first input, or computed by other nodes"),
        LeftOut("computed", "MatMul", "its weight is its first input, or computed by other nodes"),
        LeftOut("lstm", "LSTM", "the products with its weights go through gates at every step"),
    )
    assert left_out(model, {"x"}) == ()  # what reads nothing that changed needs no repair


def test_a_model_is_not_changed() -> None:
    model = CASES["strided"].model(np.random.default_rng(0))
    before = model.SerializeToString(deterministic=True)
    find_layers(model)
    assert model.SerializeToString(deterministic=True) == before
