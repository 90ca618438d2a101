"""From models to forward passes that can be differentiated."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.errors import TrainingError
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.train.trainable import trainable
from tests.toolbox import Net
from tests.train.differences import Case, check


def step_of(
    proto: ModelProto, shapes: dict[str, tuple[int, ...]], norms: str = "frozen", fast: bool = True
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Make a graph that gives a model's outputs and the gradients of their sum, and what it is fed with."""
    model = normalize(proto)
    step = forward(model, shapes, trainable(model), norms=norms, fast=fast)
    total = step.tape.emit("Sum", *(y.sum(keep=False) for y in step.outputs.values()))
    found = gradients(step.tape, total, list(step.weights.values()))
    outputs = step.outputs | {f"d {n}": g for n, g in zip(step.weights, found, strict=True)} | step.updates
    return model_of(step.tape, {f"new {n}" if n in step.updates else n: t for n, t in outputs.items()}), feeds_of(
        step, model
    )


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    net = Net(opset)
    x = net.input((2, 3, 8, 8), "x", symbols={0: "n"})
    y = net.clip(net.conv(x, 8, 3), 0.0, 6.0)
    y = net.op("MaxPool", net.upsample(net.pad(y, [0, 0, 1, 1, 0, 0, 1, 1]), 2), kernel_shape=[2, 2], strides=[2, 2])
    y = net.squeeze(net.reduce("ReduceMean", y, [2, 3]), [2, 3])
    net.output(net.op("Softmax", net.linear(y, 5), axis=-1))
    proto = net.model()
    step, feeds = step_of(proto, {"x": (4, 3, 8, 8)})
    data = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    original = proto
    original.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_value")
    expected = run(session(original), data)
    found = run(session(step), {**feeds, **data})
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert sum(n.startswith("d ") for n in found) == 3


def test_operators_that_onnx_defines_by_others() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 8)) for _ in range(3))
    check(Case("Attention", [q, k, v], {"q_num_heads": 2, "kv_num_heads": 2}, opset=23, runtime=True))


def test_what_has_no_gradient_is_named() -> None:
    net = Net(17)
    x = net.input((2, 4), "x")
    net.output(net.op("Det", net.reshape(net.linear(x, 4), (2, 2, 2)), name="volume"))
    with pytest.raises(TrainingError, match="OP901") as caught:
        step_of(net.model(), {"x": (2, 4)})
    assert 'Det "volume"' in str(caught.value)


@pytest.mark.parametrize(("opset", "code"), [(9, "OP903"), (18, "OP902")])
def test_an_operator_that_newer_opsets_lack(opset: int, code: str) -> None:
    """ONNX Runtime has it up to opset 9; the shape of its output is unknown in opset 18."""
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]), helper.make_empty_tensor_value_info("y")
    tanh = helper.make_node("ScaledTanh", ["x"], ["y"], name="early", alpha=1.0, beta=1.0)
    graph = helper.make_graph([tanh], "early", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    with pytest.raises(TrainingError) as caught:
        step_of(model, {"x": (2, 3)})
    assert caught.value.code == code


@pytest.mark.parametrize("spatial", [1, 0])
def test_moments_for_every_position(spatial: int) -> None:
    """A BatchNormalization of opset 7, which opset 9 no longer has in this form, against differences."""
    net = Net(7)
    x = net.input((2, 3, 2, 2), "x")
    shape = (3,) if spatial else (3, 2, 2)
    own = [net.between(0.5, 1.5, *shape, name=name) for name in ("scale", "bias", "mean", "variance")]
    net.output(net.op("BatchNormalization", x, *own, spatial=spatial, epsilon=0.1))
    model = normalize(net.model())
    step = forward(model, {"x": (2, 3, 2, 2)}, ["scale", "bias"], norms="frozen")
    (y,) = step.outputs.values()
    total = (y * y).sum(keep=False)
    found = gradients(step.tape, total, [step.inputs["x"], *step.weights.values()])
    made = model_of(step.tape, {"y": y, **dict(zip(("dx", "dscale", "dbias"), found, strict=True))})
    data = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype(np.float32)
    result = run(session(made), {**feeds_of(step, model), "x": data})
    weights = {n: numpy_helper.to_array(net.tensors[n]).astype(np.float64) for n in ("scale", "bias")}
    mean, variance = (numpy_helper.to_array(net.tensors[n]).astype(np.float64) for n in ("mean", "variance"))
    if spatial:
        weights = {n: a[:, None, None] for n, a in weights.items()}
        mean, variance = mean[:, None, None], variance[:, None, None]

    def normalized(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return np.asarray((x - mean) / np.sqrt(variance + 0.1) * scale + bias)

    expected = normalized(data, **weights)
    assert np.allclose(result["y"], run(session(model), {"x": data})[model.graph.output[0].name], atol=1e-5)
    assert np.allclose(result["y"], expected, atol=1e-5)
    by_hand = {
        "x": 2 * expected * weights["scale"] / np.sqrt(variance + 0.1),
        "scale": (2 * expected * (expected - weights["bias"]) / weights["scale"]).sum(0),
        "bias": (2 * expected).sum(0),
    }
    for name, value in by_hand.items():
        value = value.sum((1, 2)) if spatial and name != "x" else value
        assert np.allclose(result[f"d{name}"], value, rtol=1e-4, atol=1e-4), name


def test_a_model_that_the_converter_refuses() -> None:
    """Before opset 7, nothing broadcasts by itself: moments for every position can't be written as arithmetic."""
    net = Net(6)
    x = net.input((2, 3), "x")
    statistics = [net.between(0.5, 1.5, 3) for _ in range(4)]
    net.output(net.op("BatchNormalization", x, *statistics, spatial=0))
    with pytest.raises(TrainingError) as caught:
        step_of(net.model(), {"x": (2, 3)})
    assert caught.value.code == "OP903"


def test_half_precision_is_widened() -> None:
    net = Net(17)
    x = net.input((2, 3, 8, 8), "x", dtype=10)
    weight = net.const(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float16))
    net.output(net.op("Conv", x, weight))
    step, feeds = step_of(net.model(), {"x": (2, 3, 8, 8)})
    data = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    found = run(session(step), {**feeds, "x": data.astype(np.float32)})
    assert {a.dtype for a in found.values()} == {np.dtype(np.float32)}


def test_rounding_is_passed_straight_through() -> None:
    values = np.array([[-9.0, -0.26, 0.1, 0.4, 1.2, 9.0]], np.float32)
    net = Net(17)
    x = net.input((1, 1), "x")
    scale, zero = net.const(np.float32(0.05)), net.const(np.int8(3))
    w = net.op("DequantizeLinear", net.op("QuantizeLinear", net.const(values, "w"), scale, zero), scale, zero)
    net.output(net.op("MatMul", x, w))
    step, feeds = step_of(net.model(), {"x": (1, 1)})
    found = run(session(step), {**feeds, "x": np.full((1, 1), 2, np.float32)})
    np.testing.assert_allclose(found["d w"], [[0, 2, 2, 2, 2, 0]])


def test_what_is_trained() -> None:
    net = Net(17)
    x = net.input((2, 3, 4, 4), "x")
    y = net.op(
        "Div", net.op("Sub", x, net.const(np.ones((1, 3, 1, 1)), "mean")), net.const(np.ones((1, 3, 1, 1)), "std")
    )
    y = net.conv(y, 4, 3, name="conv", bias=False)
    y = net.op("Add", y, net.const(np.ones((1, 4, 1, 1)), "late_bias"))
    norm = [net.between(0.5, 1.5, 4, name=n) for n in ("scale", "shift", "moment", "spread")]
    y = net.op("BatchNormalization", y, *norm)
    y = net.op("Mul", y, net.const(np.ones((1, 4, 4, 4)), "mask"))
    y = net.reshape(net.op("Mul", y, net.const(0.5)), (2, -1))
    w = net.op("Transpose", net.weight(5, 64, name="turned"), perm=[1, 0])
    net.output(net.op("MatMul", y, w))
    model = normalize(net.model())
    assert trainable(model) == ["conv_w", "late_bias", "scale", "shift", "turned"]
    assert trainable(model, freeze=["conv"], also=["mask"]) == ["late_bias", "scale", "shift", "mask", "turned"]
    with pytest.raises(Exception, match="OP304"):
        trainable(model, freeze=["nothing*"])


@pytest.mark.parametrize("fast", [True, False])
def test_normalizations_follow_the_batch(fast: bool) -> None:
    rng = np.random.default_rng(0)
    net = Net(17)
    x = net.input((8, 3, 4, 4), "x")
    norm = [net.between(0.5, 1.5, 3, name=n) for n in ("scale", "shift", "moment", "spread")]
    net.output(net.op("BatchNormalization", net.conv(x, 3, 1), *norm, momentum=0.8))
    proto = net.model()
    step, feeds = step_of(proto, {"x": (8, 3, 4, 4)}, "batch", fast)
    data = {"x": rng.standard_normal((8, 3, 4, 4)).astype(np.float32)}
    found = run(session(step), {**feeds, **data})
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    y = np.einsum("nchw,oc->nohw", data["x"], weights[proto.graph.node[0].input[1]][..., 0, 0])
    y += weights[proto.graph.node[0].input[2]][:, None, None]
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(found["new moment"], 0.8 * weights["moment"] + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(found["new spread"], 0.8 * weights["spread"] + 0.2 * variance, rtol=1e-5)


def test_nodes_that_are_named_as_the_gradient_graph_names_its_own() -> None:
    """PyTorch's older exporters name nodes Operator_number, as outputs of the gradient's nodes are named."""
    net = Net()
    x = net.conv(net.input((2, 3, 6, 6)), 4, 3, name="Conv_0")
    for number in range(1, 60):
        x = net.op("Reshape", x, net.const(np.array([2, 4, 6, 6])), name=f"Reshape_{number}")
    net.output(net.conv(x, 2, name="head"))
    graph = forward(normalize(net.model()), {"input0": (2, 3, 6, 6)}, ["Conv_0_w"])
    (output,) = (graph.tape[name] for name in ("head_out0",))
    found = gradients(graph.tape, (output * output).mean(), list(graph.weights.values()))
    model = model_of(graph.tape, {"gradient": found[0]})
    names = [node.name for node in model.graph.node if node.name]
    assert len(set(names)) == len(names)
    assert {f"Reshape_{n}" for n in range(1, 60)} <= {*names, *(o for node in model.graph.node for o in node.output)}
