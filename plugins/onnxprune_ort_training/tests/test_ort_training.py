"""The backend ort-training: the forms that it is given, and the worker itself, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto

import onnxprune as op
from onnxprune.autodiff.backward import model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.data import Dataset, open_data
from onnxprune.errors import OnnxPruneError, TrainingError
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train import FineTuned, finetune
from onnxprune.train.trainable import trainable
from onnxprune_ort_training.__main__ import command
from onnxprune_ort_training.environment import PYTHONS, create_environment
from onnxprune_ort_training.forms import in_its_forms
from tests.toolbox import Net

MODELS = Path(__file__).parents[3] / "models"
SETTINGS = TrainSettings(epochs=2, batch=32, optimizer="adamw", clip=0.0, decay=0.0)


def every_form(x: str, net: Net) -> str:
    y = net.op("HardSwish", net.conv(x, 8, 3))
    y = net.op("PRelu", net.op("HardSigmoid", y, alpha=0.3), net.between(0.1, 0.4, 8, 1, 1))
    y = net.op("LeakyRelu", net.op("Elu", net.conv(y, 8, 3), alpha=0.7), alpha=0.2)
    y = net.op("InstanceNormalization", net.op("Softplus", y), net.between(0.5, 1.5, 8), net.between(-1, 1, 8))
    y = net.op("BatchNormalization", y, *(net.between(0.5, 1.5, 8) for _ in range(4)))
    y = net.op("Sum", y, net.op("DepthToSpace", net.conv(y, 32, 1, strides=[2, 2]), blocksize=2), y)
    y = net.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    y = net.op("Conv", y, net.weight(8, 8, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2])
    return net.op("GlobalMaxPool", net.op("DepthToSpace", y, blocksize=2, mode="CRD"))


def test_the_forms_compute_the_same() -> None:
    net = Net(18)
    x = net.input((2, 3, 16, 16), "x")
    net.output(every_form(x, net))
    model = normalize(net.model())
    data = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    step = forward(model, {"x": (2, 3, 16, 16)}, trainable(model), norms="frozen", fast=False)
    in_its_forms(step.tape, norms="frozen")
    left = {node.op_type for node in step.tape.nodes}
    assert not left & {"HardSwish", "HardSigmoid", "PRelu", "Elu", "Softplus", "Sum", "DepthToSpace", "GlobalMaxPool"}
    assert not any(a.name == "auto_pad" for node in step.tape.nodes for a in node.attribute)
    (name,) = step.outputs
    expected = run(session(model), data)[name]
    found = run(session(model_of(step.tape, step.outputs)), {**feeds_of(step, model), **data})[name]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_what_it_cannot_train_is_said() -> None:
    net = Net(18)
    x = net.input((1, 2, 4, 4), "x")
    net.output(net.op("ConvTranspose", x, net.weight(2, 3, 3, 3), name="up"))
    model = normalize(net.model())
    step = forward(model, {"x": (1, 2, 4, 4)}, trainable(model), norms="frozen")
    with pytest.raises(TrainingError, match="OP908") as caught:
        in_its_forms(step.tape, norms="frozen")
    assert 'ConvTranspose "up"' in str(caught.value)


@pytest.fixture(scope="module")
def pruned() -> ModelProto:
    analysis = op.analyze(MODELS / "digits_resnet.onnx")
    return op.prune(analysis, op.plan(analysis, op.PlanSettings(target=op.Target("macs", 0.3)))).proto


@pytest.fixture(scope="module")
def data(pruned: ModelProto) -> Dataset:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        return open_data({"image": arrays["images"], "labels": arrays["labels"]}, pruned)


def train(pruned: ModelProto, data: Dataset, python: Path | None, **changes: object) -> FineTuned:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    backend = "native" if python is None else "ort-training"
    return finetune(pruned, data, settings=settings, backend=backend, training_python=python)


@pytest.mark.parametrize(
    "changes", [{"optimizer": "sgd"}, {"optimizer": "lamb"}, {"clip": 1.0}, {"lasso": 1e-3}], ids=str
)
def test_settings_beyond_it(pruned: ModelProto, data: Dataset, changes: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="OP908"):
        train(pruned, data, Path(sys.executable), **changes)


def test_an_interpreter_that_is_not_there(pruned: ModelProto, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="OP908"):
        train(pruned, data, tmp_path / "python")
    with pytest.raises(TrainingError, match="python -m onnxprune_ort_training"):
        finetune(pruned, data, settings=SETTINGS, backend="ort-training")


def test_an_interpreter_without_it(pruned: ModelProto, data: Dataset) -> None:
    with pytest.raises(TrainingError, match="OP908"):
        train(pruned, data, Path(sys.executable))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with onnxruntime-training: the one that is named, or a new one from the package index."""
    if given := os.environ.get("ONNXPRUNE_TRAINING_PYTHON"):
        return Path(given)
    base = next(filter(None, (shutil.which(f"python{v}") for v in PYTHONS)), None)
    if base is None:
        pytest.skip("onnxruntime-training needs Python 3.12 or older")
    try:
        return create_environment(tmp_path_factory.mktemp("training") / "environment", base)
    except OnnxPruneError as error:
        pytest.skip(f"onnxruntime-training can't be installed: {error.cause}")


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["batch", "frozen"])
def test_the_same_losses_as_the_native_backend(pruned: ModelProto, data: Dataset, python: Path, norms: str) -> None:
    mine, its = (train(pruned, data, p, norms=norms, accumulate=2) for p in (None, python))
    np.testing.assert_allclose([e.loss for e in its.history], [e.loss for e in mine.history], rtol=2e-3)
    assert its.after is not None and mine.after is not None
    assert abs(its.after["top1"].model.value - mine.after["top1"].model.value) < 0.1
    other = train(pruned, data, None, norms=norms, accumulate=2, rate=1e-3)
    assert not np.allclose([e.loss for e in other.history], [e.loss for e in mine.history], rtol=2e-3)


@pytest.mark.slow
def test_no_worker_is_left(pruned: ModelProto, data: Dataset, python: Path) -> None:
    def workers() -> set[str]:
        found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        return {line.strip() for line in found.splitlines() if f"{python} -I" in line}

    def fail(*_: object) -> None:
        assert workers() - before
        raise KeyboardInterrupt

    before = workers()
    options: dict[str, Callable[..., None]] = {"progress": fail}
    with pytest.raises(KeyboardInterrupt):
        finetune(pruned, data, settings=SETTINGS, backend="ort-training", training_python=python, **options)  # type: ignore[arg-type]
    assert not workers() - before


def test_an_environment_is_not_made_over_something(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert result.exit_code == 2 and "OP908" in result.stderr
    broken = CliRunner().invoke(command, [str(tmp_path / "new"), "--python", "no-such-python"])
    assert broken.exit_code == 2 and "OP908" in broken.stderr and not (tmp_path / "new").exists()
