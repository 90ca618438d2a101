"""Models in half precision train in float32: against torch in double precision, and against training in half."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.data import open_data
from onnxprune.errors import TrainingError
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train import finetune
from onnxprune.train.objective import objective
from onnxprune.train.runner import HostRunner
from onnxprune.train.step import SKIPPED, TrainingStep, build_step
from tests.toolbox import Net

CPU = ["CPUExecutionProvider"]
HALF = [TensorProto.FLOAT16, TensorProto.BFLOAT16]
SHARED = Path(__file__).parents[2] / "../shared/models"
X = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float16)


def convolutions(dtype: int, seed: int = 0, scale: float = 1.0) -> ModelProto:
    """Make conv, relu, conv, in one type from input to output."""
    rng, real = np.random.default_rng(seed), helper.tensor_dtype_to_np_dtype(dtype)
    arrays = {
        n: rng.standard_normal(s) / np.prod(s[1:]) ** 0.5 for n, s in (("w0", (24, 3, 3, 3)), ("w1", (4, 24, 1, 1)))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="c0"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1"], ["y"], name="c1"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", dtype, ["N", 4, 6, 6])],
        [numpy_helper.from_array((a * scale).astype(real), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def arrays_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def types_of(model: ModelProto) -> set[int]:
    values = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    return {*values, *(t.data_type for t in model.graph.initializer)}


def step_of(model: ModelProto, batch: dict[str, NDArray[Any]], **changes: Any) -> TrainingStep:
    settings = TrainSettings(optimizer="sgd", losses={"mse": 1.0}, decay=0.0, clip=0.0, **changes)
    proto = normalize(model)
    goal = objective(proto, settings, labeled=False, teacher=True, inputs={"x": batch["x"].shape})
    return build_step(proto, goal, settings, batch)


def torch_steps(
    model: ModelProto, batch: dict[str, NDArray[Any]], steps: int, rate: float, dtype: str
) -> dict[str, Any]:
    """Train the convolutions by torch: gradient descent with Nesterov momentum, all of it in one type."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    weights = {n: torch.from_numpy(a.astype(np.float64)).to(kind).requires_grad_() for n, a in arrays_of(model).items()}
    x, target = (torch.from_numpy(batch[n].astype(np.float64)).to(kind) for n in ("x", "teacher:mse"))
    optimizer = torch.optim.SGD(weights.values(), lr=rate, momentum=0.9, nesterov=True)
    for _ in range(steps):
        optimizer.zero_grad()
        y = torch.conv2d(torch.relu(torch.conv2d(x, weights["w0"])), weights["w1"])
        ((y - target) ** 2).mean().backward()
        optimizer.step()
    return {n: w.detach().double().numpy() for n, w in weights.items()}


@pytest.mark.dev
@pytest.mark.parametrize(("dtype", "name"), [*zip(HALF, ("float16", "bfloat16"), strict=True)])
def test_steps_equal_those_of_torch_in_double_precision(dtype: int, name: str) -> None:
    """So small a rate that steps are lost where weights are kept in half precision, which is the negative control."""
    model = convolutions(dtype)
    target = np.random.default_rng(1).standard_normal((32, 4, 6, 6)).astype(np.float32)
    batch, rate = {"x": X.astype(np.float32), "teacher:mse": target}, 1e-5
    runner = HostRunner(step_of(model, batch), providers=CPU, threads=1)
    for _ in range(20):
        assert runner.step([batch], rate)[SKIPPED] == 0
    exact, rounded = (torch_steps(model, batch, 20, rate, kind) for kind in ("float64", name))
    for weight, first in arrays_of(model).items():
        before = first.astype(np.float64)
        moved = np.linalg.norm(exact[weight] - before)
        assert runner.weights[weight].dtype == np.float32
        assert np.linalg.norm(runner.weights[weight] - exact[weight]) < 0.01 * moved
        assert np.linalg.norm(rounded[weight] - exact[weight]) > 0.3 * moved


@pytest.mark.parametrize("dtype", HALF)
def test_training_keeps_the_types_of_a_model(dtype: int) -> None:
    model, teacher = convolutions(dtype, scale=1.3), convolutions(dtype)
    result = finetune(
        model, open_data({"x": X}, model), teacher=teacher, settings=TrainSettings(epochs=8, batch=8, rate=0.01)
    )
    assert result.kept == "after" and types_of(result.proto) == {dtype}
    assert result.before is not None and result.after is not None
    assert result.after["mse"].model.value < 0.8 * result.before["mse"].model.value
    assert all(np.isfinite(a.astype(np.float32)).all() for a in arrays_of(result.proto).values())


def test_a_model_of_several_types_is_trained() -> None:
    net = Net(17)
    x = net.input((16, 6), "x")
    h = net.op("Cast", net.op("Relu", net.op("MatMul", x, net.weight(6, 12, name="w"))), to=TensorProto.FLOAT16)
    y = net.op("MatMul", h, net.const(np.full((12, 3), 0.25, np.float16)))
    net.output(net.op("Cast", y, to=TensorProto.FLOAT))
    model = net.model()
    teacher = ModelProto()
    teacher.CopyFrom(model)
    for tensor in teacher.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    data = open_data({"x": np.random.default_rng(2).standard_normal((64, 6)).astype(np.float32)}, model)
    result = finetune(model, data, teacher=teacher, settings=TrainSettings(epochs=6, losses={"nmse": 1.0}), hold_out=0)
    before, after = arrays_of(normalize(model)), arrays_of(result.proto)
    assert {n: a.dtype for n, a in after.items()} == {n: a.dtype for n, a in before.items()}
    assert all((before[n] != after[n]).any() for n in after if before[n].ndim == 2)
    assert result.history[-1].loss < result.history[0].loss


class Stop(Exception):
    """What stops a training from outside."""


def test_resuming_is_bit_for_bit(tmp_path: Path) -> None:
    model, teacher = convolutions(HALF[0], scale=1.3), convolutions(HALF[0])
    data, settings = open_data({"x": X}, model), TrainSettings(epochs=3, batch=4)
    options: dict[str, Any] = {"teacher": teacher, "settings": settings, "threads": 1, "hold_out": 0}

    def interrupt(phase: str, done: int, total: int | None) -> None:
        if done == 13:
            raise Stop

    whole, kept = finetune(model, data, **options), {"checkpoint": tmp_path / "run.npz", "every": 2}
    with pytest.raises(Stop):
        finetune(model, data, progress=interrupt, **options, **kept)
    steps: list[int] = []
    resumed = finetune(
        model, data, resume=True, progress=lambda phase, done, total: steps.append(done), **options, **kept
    )
    assert steps[0] == 13
    assert resumed.proto == whole.proto and whole.proto != normalize(model)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(accumulate: int) -> None:
    model = convolutions(HALF[0])
    target = np.zeros((32, 4, 6, 6), np.float32)
    good = {"x": X.astype(np.float32), "teacher:mse": target}
    bad = {**good, "x": np.where(np.arange(32)[:, None, None, None] == 7, np.float32(3e38), good["x"])}
    runner = HostRunner(step_of(model, good, accumulate=accumulate), providers=CPU, threads=1)
    runner.step([good] * accumulate, 0.1)
    before = {n: a.copy() for n, a in runner.state.items()}
    assert runner.step([*[good] * (accumulate - 1), bad], 0.1)[SKIPPED] == 1
    assert all(np.array_equal(before[n], a) for n, a in runner.state.items()) and runner.number == 1
    assert runner.step([good] * accumulate, 0.1)[SKIPPED] == 0
    assert not all(np.array_equal(before[n], a) for n, a in runner.state.items()) and runner.number == 2
    assert all(np.isfinite(a).all() for a in runner.state.values())


def test_skipped_steps_are_counted_and_many_in_a_row_are_a_failure() -> None:
    def trained(bad: Sequence[int]) -> Any:
        images = X[np.arange(64) % 32].astype(np.float32)
        images[list(bad)] = 3e38  # so large that the first convolution overflows
        settings = TrainSettings(epochs=1, batch=4)
        return finetune(model, open_data({"x": images}, model), teacher=teacher, settings=settings, hold_out=0)

    model, teacher = convolutions(TensorProto.FLOAT, scale=1.3), convolutions(TensorProto.FLOAT)
    few, all_ = trained([5]), trained(range(64))
    assert few.failure is None and few.history[0].skipped == 1 and np.isfinite(few.history[0].loss)
    assert few.kept == "after" and all(np.isfinite(a).all() for a in arrays_of(few.proto).values())
    assert isinstance(all_.failure, TrainingError) and all_.failure.code == "OP907"
    assert all_.proto == normalize(model)


def test_pruning_and_training_in_one_go(tmp_path: Path) -> None:
    op.save(convolutions(HALF[0]), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    fixed = ["prune", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "small.onnx"), "--ratio", "0.3"]
    options = ["--data", str(tmp_path / "data.npz"), "--finetune", "2", "--format", "json"]
    result = CliRunner().invoke(cli, [*fixed, *options])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["finetuning"]["history"]) == 2
    assert types_of(op.load(tmp_path / "small.onnx").proto) == {HALF[0]}


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/models")
def test_a_squeezenet_in_float16() -> None:
    model = SHARED / "squeezenet_fp16_winml.onnx"
    small = op.prune(model, op.plan(model, ratio=0.3)).proto
    images = (np.random.default_rng(0).standard_normal((6, 3, 224, 224)) * 60).astype(np.float16)
    data = open_data({"data_0": images}, small)
    result = finetune(small, data, teacher=model, settings=TrainSettings(epochs=1, warm_up=0.0, schedule="constant"))
    assert result.history[0].steps == 5 and result.history[0].skipped == 0
    assert types_of(result.proto) == types_of(small)
    assert result.kept == "after" and result.metric == "kl"
