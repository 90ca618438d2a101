"""Training by the loss that a task needs: gradients against differences, and models that learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxprune import finetune
from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.cli import cli
from onnxprune.data import IGNORED, open_data
from onnxprune.errors import TrainingError
from onnxprune.evaluation import evaluate, recognize
from onnxprune.model.session import run, session
from onnxprune.model.tape import Tape
from onnxprune.normalize import normalize
from onnxprune.settings import TrainSettings
from onnxprune.settings.training import LossSettings
from onnxprune.train.losses import LOSSES
from onnxprune.train.objective import objective
from tests.data.support import refused
from tests.toolbox import Net
from tests.train.differences import TOLERANCE, disagreement

RNG = np.random.default_rng(0)


def bce(x: Any, y: Any) -> float:
    counted = y != IGNORED
    return float((np.logaddexp(0, x) - x * y)[counted].sum() / max(counted.sum(), 1))


def huber(x: Any, y: Any) -> float:
    error = np.abs(x - y)
    return float(np.where(error <= 0.7, error**2 / 2, 0.7 * (error - 0.35)).mean())


@pytest.mark.parametrize(
    ("name", "by_hand"), [("bce", bce), ("huber", huber), ("mse", lambda x, y: ((x - y) ** 2).mean())]
)
def test_gradients_of_losses_by_labels(name: str, by_hand: Any) -> None:
    x = RNG.standard_normal((6, 4)) * 2
    y = RNG.integers(-1, 2, x.shape).astype(float) if name == "bce" else RNG.standard_normal(x.shape)
    tape = Tape(18)
    output, labels = tape.input("x", x.shape), tape.input("y", y.shape)
    loss = LOSSES[name](output, labels, LossSettings(delta=0.7))
    (gradient,) = gradients(tape, loss, [output])
    found = run(
        session(model_of(tape, {"loss": loss, "g": gradient})), {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    )
    assert float(found["loss"]) == pytest.approx(by_hand(x, y), rel=1e-5)
    function = lambda arrays: by_hand(arrays["x"], y)  # noqa: E731
    rng = np.random.default_rng(1)
    assert disagreement(function, {"x": x}, "x", found["g"], rng, 1e-5) < TOLERANCE
    assert disagreement(function, {"x": x}, "x", found["g"] * 1.02, rng, 1e-5) > TOLERANCE  # the control


def classifier(outputs: int, *end: str) -> onnx.ModelProto:
    """Two layers, and operators after them."""
    net = Net()
    x = net.input((2, 8), "x", symbols={0: "N"})
    hidden = net.op("Relu", net.op("Gemm", x, net.weight(8, 32, fan_in=8), net.weight(32)))
    value = net.op("Gemm", hidden, net.weight(32, outputs, fan_in=32), net.weight(outputs))
    for operator in end:
        value = net.op(operator, value)
    net.output(value, {0: "N"})
    return net.model()


X = RNG.standard_normal((400, 8)).astype(np.float32)


@pytest.mark.parametrize("end", [(), ("Sigmoid",), ("Sigmoid", "Identity"), ("Sigmoid", "Sqrt")])
@pytest.mark.parametrize("outputs", [1, 3])
def test_decisions_are_learned_from_labels(outputs: int, end: tuple[str, ...]) -> None:
    labels = (X[:, :outputs] > 0).astype(np.int64)
    labels = labels[:, 0] if outputs == 1 else labels
    proto = classifier(outputs, *end)
    data = open_data({"x": X, "labels": labels}, proto)
    settings = TrainSettings(epochs=12, rate=0.02, optimizer="adamw")
    before = evaluate(proto, data)["auc"].model.value
    result = finetune(proto, data, settings=settings)
    assert result.metric == "auc" and result.history[0].loss > 0.2
    assert result.history[-1].loss < result.history[0].loss
    after = evaluate(result.proto, data)["auc"].model.value
    assert after > 0.97 > before


def test_numbers_are_learned_from_labels_of_any_type() -> None:
    for labels in (X[:, 0] * 3 + 1, np.round(X[:, 0] * 3 + 9).astype(np.int64)):
        proto = classifier(1)
        data = open_data({"x": X, "labels": labels}, proto)
        settings = TrainSettings(epochs=40, rate=0.05, optimizer="adamw")
        result = finetune(proto, data, settings=settings)
        assert result.before is not None and result.before.task == "regression" and result.metric == "r2"
        assert evaluate(result.proto, data)["r2"].model.value > 0.8


@pytest.mark.parametrize("loss", ["cross-entropy", "kl"])
def test_classes_are_never_compared_with_one_score(loss: Any) -> None:
    proto = classifier(1, "Sigmoid")
    data = open_data({"x": X, "labels": (X[:, 0] > 0).astype(np.int64)}, proto)
    with pytest.raises(TrainingError, match=r"OP904.*there is one score, so it would always be 0"):
        finetune(proto, data, teacher=proto, settings=TrainSettings(losses={loss: 1.0}))


def test_labels_that_a_loss_does_not_take_are_refused() -> None:
    proto = classifier(3)
    numbers = open_data({"x": X, "labels": X[:, :3]}, proto)
    with pytest.raises(TrainingError, match=r"OP904.*class indices, and the labels are float32"):
        finetune(proto, numbers, settings=TrainSettings(losses={"cross-entropy": 1.0}))
    with refused("OP708", "is no probability, which the loss bce takes"):
        finetune(proto, numbers, settings=TrainSettings(losses={"bce": 1.0}))


def test_the_default_loss_is_that_of_the_task() -> None:
    wanted = {1: ("bce", (X[:, 0] > 0).astype(int)), 3: ("mse", X[:, :3]), 5: ("cross-entropy", np.arange(400) % 5)}
    for outputs, (loss, labels) in wanted.items():
        proto = normalize(classifier(outputs))
        task = recognize(proto, open_data({"x": X, "labels": labels}, proto))
        (term,) = objective(proto, TrainSettings(), labeled=True, teacher=False, task=task).terms
        assert (term.loss, term.taught) == (loss, False)
        terms = objective(proto, TrainSettings(), labeled=True, teacher=True, task=task).terms
        assert [t.loss for t in terms] == [loss, "kl" if loss == "cross-entropy" else "nmse"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The case one_logit_labels: a binary classifier with integer labels, and the same inputs with numbers."""
    onnx.save(classifier(1, "Sigmoid"), tmp_path / "model.onnx")
    np.savez(tmp_path / "bin.npz", x=X, labels=(X[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "real.npz", x=X, labels=X[:, :1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def shell(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_one_logit_with_integer_labels_from_end_to_end(place: Path) -> None:
    said = shell("evaluate", "model.onnx", "--data", "bin.npz")
    assert said.exit_code == 0 and "ROC AUC" in said.stdout and "binary by output" in said.stdout
    tuned = shell(
        "finetune", "model.onnx", "-o", "tuned.onnx", "--data", "bin.npz", "--optimizer", "adamw", "--rate", "0.02"
    )
    assert tuned.exit_code == 0, tuned.output
    assert "labels of 0 and 1" in tuned.stdout and "(bce)" in tuned.stdout and "0.0000" not in tuned.stdout
    data = open_data(place / "bin.npz", onnx.load("model.onnx"))
    before, after = (evaluate(name, data)["auc"].model.value for name in ("model.onnx", "tuned.onnx"))
    assert after > 0.97 > before
    refusal = shell("finetune", "model.onnx", "-o", "no.onnx", "--data", "bin.npz", "--loss", "cross-entropy")
    assert refusal.exit_code == 2 and "OP904" in refusal.stderr and not (place / "no.onnx").exists()
    assert "R2" in shell("evaluate", "model.onnx", "--data", "real.npz").stdout


def test_a_drop_of_decisions_and_of_numbers_limits_pruning(place: Path) -> None:
    for data, metric, title in (("bin.npz", "accuracy", "accuracy"), ("real.npz", "r2", "R2")):
        trained = ("finetune", "model.onnx", "-o", f"{metric}_dense.onnx", "--data", data, "--epochs", "20")
        assert shell(*trained, "--optimizer", "adamw", "--rate", "0.02").exit_code == 0  # an original above chance
        arguments = ("prune", f"{metric}_dense.onnx", "-o", f"{metric}.onnx", "--max-drop", "20%", "--data", data)
        result = shell(*arguments)
        assert result.exit_code == 0, result.output
        assert f"{title} drops by" in result.stderr and (place / f"{metric}.onnx").exists()
    measured = shell("sensitivity", "model.onnx", "--data", "bin.npz", "--metric", "auc")
    assert measured.exit_code == 0 and "Loss of auc" in measured.stdout
