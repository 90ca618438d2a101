"""Integers carry no gradient: whole graphs with integer paths, against differences of the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import onnxprune as op
from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.data import open_data
from onnxprune.errors import DataError, TrainingError
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train import finetune
from tests.train.differences import TOLERANCE, disagreement

Arrays = Mapping[str, NDArray[Any]]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4)).astype(np.float32)
SIZES = {"w": (4, 8), "v": (8, 5), "table": (5, 8), "u": (8, 3)}
WEIGHTS = {n: RNG.standard_normal(s).astype(np.float32) for n, s in SIZES.items()}

# Each makes r from h, which is trained, by way of integers.
ROUTES = {
    "TopK": "g = MatMul(h, v) k = Constant<value_ints = [1]>() best, i = TopK<axis = 1>(g, k) j = Squeeze(i, k) "
    "t = Gather(table, j) r = Mul(t, best)",
    "ArgMin": "g = MatMul(h, v) j = ArgMin<axis = 1, keepdims = 0>(g) t = Gather(table, j) r = Add(t, h)",
    "Cast": "f = Abs(h) c = Cast<to = 7>(f) n = Constant<value = int64 {5}>() j = Mod(c, n) "
    "t = Gather<axis = 0>(table, j) m = ReduceMean<axes = [1], keepdims = 0>(t) r = Mul(m, h)",
    "ScatterElements": "a = Constant<value_ints = [3]>() s, i = TopK<axis = 1>(h, a) p = Exp(s) "
    "r = ScatterElements<axis = 1>(h, i, p)",
    "ScatterND": "g = MatMul(h, v) a = ArgMax<axis = 0, keepdims = 0>(g) o = Constant<value_ints = [1]>() "
    'b = Unsqueeze(a, o) z = ConstantOfShape<value = float[1] {0}>(q) r1 = ScatterND<reduction = "add">(z, b, table) '
    "r = Add(r1, h)",
    "GatherND": "g = MatMul(h, v) a = ArgMax<axis = 1>(g) r1 = GatherND(table, a) r = Mul(r1, h)",
    "GatherElements": "k = Constant<value_ints = [8]>() s, i = TopK<axis = 1>(h, k) e = Exp(h) "
    "r = GatherElements<axis = 1>(e, i)",
    "Greater": "z = Constant<value = float {0.3}>() b = Greater(h, z) c = Cast<to = 1>(b) d = Mul(c, h) r = Add(d, h)",
}


def routed(route: str) -> ModelProto:
    """Make a model: h = Relu(x w), the route, and y = r u."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[6,4] x) => (float[6,3] y) {{
        q = Constant<value_ints = [6, 8]>() x1 = MatMul(x, w) h = Tanh(x1) {route} y = MatMul(r, u) }}"""
    model: ModelProto = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in WEIGHTS.items() if n in text)
    return normalize(model)


def found(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Return the gradients of the sum of y."""
    names = [t.name for t in model.graph.initializer if t.name in WEIGHTS]
    step = forward(model, {"x": X.shape}, names)
    total = step.outputs["y"].sum(keep=False)
    derived = gradients(step.tape, total, list(step.weights.values()))
    opened = session(model_of(step.tape, {f"d {n}": g for n, g in zip(step.weights, derived, strict=True)}), threads=1)
    feeds = {**feeds_of(step, model), "x": X}
    results = run(opened, {i.name: feeds[i.name] for i in opened.get_inputs()})
    return {n: results[f"d {n}"] for n in names}


def in_double(model: ModelProto) -> ReferenceEvaluator:
    """Return the model in double precision, with its trained weights as inputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in list(copy.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
        if tensor.name in WEIGHTS:
            value = copy.graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
            copy.graph.initializer.remove(tensor)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return ReferenceEvaluator(copy)


def hold_against_differences(model: ModelProto) -> None:
    evaluator = in_double(model)
    derived = found(model)
    arrays = {n: WEIGHTS[n].astype(np.float64) for n in derived}
    rng = np.random.default_rng(1)

    def function(given: Arrays) -> float:
        return float(evaluator.run(None, {"x": X.astype(np.float64), **given})[0].sum())  # type: ignore[union-attr]

    caught = 0
    for name, gradient in derived.items():
        assert disagreement(function, arrays, name, gradient, rng, 1e-6) < TOLERANCE, name
        caught += disagreement(function, arrays, name, gradient * 1.02, rng, 1e-6) > TOLERANCE
    assert caught >= 2, "a gradient that is off by a fiftieth would not be noticed"


@pytest.mark.parametrize("name", ROUTES)
def test_integer_paths(name: str) -> None:
    hold_against_differences(routed(ROUTES[name]))


def test_quantized_numbers_do_carry_a_gradient() -> None:
    """The negative control: if all integers stopped gradients, nothing would reach w."""
    scale = "s = Constant<value = float {0.01}>() z = Constant<value = int8 {0}>()"
    derived = found(routed(f"{scale} n = QuantizeLinear(h, s, z) r = DequantizeLinear(n, s, z)"))
    plain = found(routed("r = Identity(h)"))
    np.testing.assert_allclose(derived["w"], plain["w"], rtol=1e-4)
    assert np.abs(plain["w"]).max() > 0.1


def test_random_numbers_carry_no_gradient() -> None:
    """The reparameterization of a VAE: with draws that hardly spread around 0.7, r = 0.7 h."""
    model = routed("d = RandomNormalLike<mean = 0.7, scale = 1e-7>(h) r = Mul(d, h)")
    wanted = found(routed("d = Constant<value = float {0.7}>() r = Mul(d, h)"))
    for name, gradient in found(model).items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["RandomUniformLike", "Bernoulli"])
def test_models_that_draw_are_trained(name: str) -> None:
    model = routed(f"p = Sigmoid(h) d = {name}(p) r = Mul(d, h)")
    data = open_data({"x": np.tile(X, (4, 1))}, model)
    result = finetune(model, data, teacher=model, hold_out=0, settings=TrainSettings(epochs=1))
    assert np.isfinite(result.history[0].loss)


CONDITIONS = {
    "constant": "c = Constant<value = bool {CHOICE}>()",
    "of sizes": "s = Shape(x) o = Constant<value = int64 {1}>() n = Gather(s, o) k = Constant<value = int64 {4}>() "
    "e = Equal(n, k) t = Constant<value = bool {CHOICE}>() c = Equal(e, t)",
}


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("name", CONDITIONS)
def test_an_if_whose_condition_is_known_is_the_body_that_runs(name: str, choice: int) -> None:
    condition = CONDITIONS[name].replace("CHOICE", str(choice))
    bodies = "then_branch = t () => (float[6,8] p) { p = Exp(h) }, else_branch = f () => (float[6,8] o) { o = Sin(h) }"
    derived = found(routed(f"{condition} r = If (c) <{bodies}>"))
    wanted, other = (found(routed(f"r = {o}(h)")) for o in (("Exp", "Sin") if choice else ("Sin", "Exp")))
    for weight, gradient in derived.items():
        np.testing.assert_allclose(gradient, wanted[weight], rtol=1e-5)
        assert not np.allclose(gradient, other[weight], rtol=0.1)


def sampled(body: str = "") -> ModelProto:
    """Make a model with an If that a sampling rate decides, or with one of its bodies in place of it."""
    bodies = (
        "then_branch = t () => (float[N,8] p) { p = Mul(h, s) }, else_branch = f () => (float[N,8] o) { o = Sin(h) }"
    )
    chosen = f"k = Constant<value = int64 {{16000}}>() c = Equal(sr, k) r = If (c) <{bodies}>"
    model: ModelProto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x, int64 sr) => (float[N,3] y) {{
            h1 = MatMul(x, w) h = Tanh(h1) {body or chosen} y = MatMul(r, u) }}"""
    )
    arrays = {n: a for n, a in WEIGHTS.items() if n in "wu"} | {"s": np.full((1, 8), 1.5, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


@pytest.mark.parametrize(("rate", "body"), [(16000, "r = Mul(h, s)"), (8000, "r = Sin(h)")])
def test_an_input_that_never_changes_decides_which_body_is_trained(rate: int, body: str) -> None:
    labels = np.tile(np.arange(6) % 3, 4)

    def trained(model: ModelProto, rates: list[int]) -> tuple[Arrays, tuple[Any, ...]]:
        arrays = {"x": np.tile(X, (4, 1)), "sr": np.resize(rates, 24), "labels": labels}
        settings = TrainSettings(epochs=2, batch=6, also=("[su]",))
        result = finetune(model, open_data(arrays, model), hold_out=0, settings=settings)
        return {t.name: numpy_helper.to_array(t) for t in result.proto.graph.initializer}, result.untrained

    found, _ = trained(sampled(), [rate])
    wanted, _ = trained(sampled(body), [rate])
    for name in ("w", "u", "s"):
        np.testing.assert_array_equal(found[name], wanted.get(name, 1.5))
    assert not np.array_equal(found["w"], WEIGHTS["w"])
    with pytest.raises((DataError, TrainingError), match="sr"):  # the negative control
        trained(sampled(), [16000] * 6 + [8000] * 6)


def test_an_if_that_depends_on_values_is_refused_by_name() -> None:
    bodies = "then_branch = t () => (float[6,8] p) { p = Exp(h) }, else_branch = f () => (float[6,8] o) { o = Sin(h) }"
    model = routed(
        f"m = ReduceMax<keepdims = 0>(x) z = Constant<value = float {{0.0}}>() c = Greater(m, z) r = If (c) <{bodies}>"
    )
    with pytest.raises(TrainingError, match=r"OP901.*If"):
        found(model)


def test_weights_that_the_loss_does_not_depend_on_stay() -> None:
    """They mustn't decay either: the body that doesn't run, and what only other outputs read."""
    bodies = (
        "then_branch = t () => (float[6,8] p) { p = Mul(h, s) }, else_branch = f () => (float[6,8] o) { o = Mul(h, t) }"
    )
    model = routed(f"c = Constant<value = bool {{1}}>() r = If (c) <{bodies}>")
    for name in ("s", "t"):
        model.graph.initializer.append(numpy_helper.from_array(np.full((8, 8)[:1], 1.5, np.float32), name))
    data = open_data({"x": np.tile(X, (4, 1)), "labels": np.tile(np.arange(6) % 3, 4)}, model)
    settings = TrainSettings(epochs=2, decay=0.1, also=("s", "t"), optimizer="sgd")
    result = finetune(model, data, hold_out=0, settings=settings)
    after = {t.name: numpy_helper.to_array(t) for t in result.proto.graph.initializer}
    assert (after["t"] == 1.5).all() and (after["s"] != 1.5).any()


def test_the_case_of_an_expert_that_is_picked() -> None:
    """Pruning a network with a routed path and training it again reduces the error on data not trained on."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (float[N,4] y) {
        h = MatMul(x, we) hr = Relu(h) g = MatMul(hr, wg) k = Constant<value_ints = [1]>()
        best, i2 = TopK<axis = 1>(g, k) i = Squeeze(i2, k) t = Gather(table, i) tg = Mul(t, best) s = Add(tg, hr)
        y = MatMul(s, wo) }"""
    model: ModelProto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"we": (8, 32), "wg": (32, 5), "table": (5, 32), "wo": (32, 4)}.items():
        array = (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    small = op.prune(model, op.plan(model, ratio=0.3)).proto
    data = open_data({"x": rng.standard_normal((256, 8)).astype(np.float32)}, small)
    result = finetune(small, data, teacher=model, settings=TrainSettings(epochs=5, batch=32), metric="mse")
    assert result.before is not None and result.after is not None
    assert result.after["mse"].model.value < 0.9 * result.before["mse"].model.value
