"""Fine-tuning from end to end, on a small trained network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.data import Dataset, open_data
from onnxprune.errors import DataError, PlanError, TrainingError
from onnxprune.normalize import normalize
from onnxprune.settings.training import Augmentation, TrainSettings
from onnxprune.train import FineTuned, finetune

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"
QUICK = TrainSettings(epochs=2, batch=32, rate=0.005)


@pytest.fixture(scope="module")
def pruned() -> ModelProto:
    analysis = op.analyze(MODEL)
    return op.prune(analysis, op.plan(analysis, op.PlanSettings(target=op.Target("macs", 0.3)))).proto


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        return {"image": data["images"], "labels": data["labels"]}


@pytest.fixture
def data(pruned: ModelProto, images: dict[str, np.ndarray]) -> Dataset:
    return open_data(images, pruned)


@pytest.fixture
def unlabeled(pruned: ModelProto, images: dict[str, np.ndarray]) -> Dataset:
    return open_data({"image": images["image"]}, pruned)


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def accuracy(result: FineTuned) -> tuple[float, float]:
    assert result.before is not None and result.after is not None
    return result.before["top1"].model.value, result.after["top1"].model.value


def test_labels_win_back_what_pruning_lost(pruned: ModelProto, data: Dataset) -> None:
    seen: list[tuple[str, int, int | None]] = []
    result = finetune(
        pruned, data, settings=replace(QUICK, epochs=4), hold_out=0.3, progress=lambda *at: seen.append(at)
    )
    before, after = accuracy(result)
    assert before < 0.4 and after > 0.85
    assert result.kept == "after" and result.metric == "top1"
    assert [e.number for e in result.history] == [1, 2, 3, 4]
    assert seen[-1][1] == seen[-1][2] == result.history[-1].steps == len(seen)
    assert [n for n in weights_of(result.proto)] == [n for n in weights_of(op.load(result.proto).proto)]


def test_a_teacher_needs_no_labels(pruned: ModelProto, unlabeled: Dataset, data: Dataset) -> None:
    settings = replace(QUICK, epochs=4)
    result = finetune(pruned, unlabeled, teacher=MODEL, validation=data, settings=settings)
    before, after = accuracy(result)
    assert before < 0.4 and after > 0.85


def test_without_labels_and_teacher_there_is_nothing_to_learn(pruned: ModelProto, unlabeled: Dataset) -> None:
    with pytest.raises(TrainingError, match="OP904"):
        finetune(pruned, unlabeled)


def test_the_better_model_is_kept(images: dict[str, np.ndarray]) -> None:
    model = op.load(MODEL).proto
    data = open_data(images, model)
    result = finetune(model, data, settings=replace(QUICK, epochs=1, rate=1.0, clip=0.0, warm_up=0.0))
    before, after = accuracy(result)
    assert result.kept == "before" and before >= after
    old, new = weights_of(normalize(model)), weights_of(result.proto)
    assert all(np.array_equal(old[n], new[n]) for n in new)


def test_divergence_is_an_error_and_the_best_model_survives(pruned: ModelProto, data: Dataset) -> None:
    settings = replace(QUICK, rate=1e6, clip=0.0, norms="frozen", warm_up=0.0)
    result = finetune(pruned, data, settings=settings)
    assert result.failure is not None and result.failure.code == "OP907"
    assert result.failure.exit_status == 1
    assert all(np.isfinite(a).all() for a in weights_of(result.proto).values())


class Stop(Exception):
    """What stops a training from outside."""


@pytest.mark.parametrize(("stop", "next_step"), [(5, 5), (12, 9), (13, 13)])
def test_resuming_is_bit_for_bit(pruned: ModelProto, data: Dataset, tmp_path: Path, stop: int, next_step: int) -> None:
    augmented = Augmentation(flip=True, crop=1, cutout=2)
    settings = replace(QUICK, epochs=2, augmentation=augmented, accumulate=1, patience=3)
    whole = finetune(pruned, data, settings=settings, teacher=MODEL, threads=1)

    def interrupt(phase: str, done: int, total: int | None) -> None:
        if done == stop:
            raise Stop

    file = tmp_path / "run.npz"
    options: dict[str, Any] = {"settings": settings, "teacher": MODEL, "checkpoint": file, "every": 4, "threads": 1}
    with pytest.raises(Stop):
        finetune(pruned, data, progress=interrupt, **options)
    steps: list[int] = []
    resumed = finetune(pruned, data, resume=True, progress=lambda phase, done, total: steps.append(done), **options)
    assert steps[0] == next_step
    first, second = weights_of(whole.proto), weights_of(resumed.proto)
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert [(e.loss, e.value) for e in whole.history] == [(e.loss, e.value) for e in resumed.history]
    assert accuracy(whole) == accuracy(resumed)


def test_a_checkpoint_of_another_training_is_refused(pruned: ModelProto, data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    finetune(pruned, data, settings=replace(QUICK, epochs=1), checkpoint=file)
    with pytest.raises(TrainingError, match="other work"):
        finetune(pruned, data, settings=replace(QUICK, epochs=3), checkpoint=file, resume=True)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TrainingError, match="OP905"):
        finetune(pruned, data, settings=replace(QUICK, epochs=1), checkpoint=file, resume=True)


def test_the_seed_decides(pruned: ModelProto, data: Dataset) -> None:
    def trained(seed: int) -> dict[str, np.ndarray]:
        found = finetune(pruned, data, settings=replace(QUICK, epochs=1, seed=seed), hold_out=0, threads=1)
        return weights_of(found.proto)

    first, again, other = trained(0), trained(0), trained(1)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not all(np.array_equal(first[n], other[n]) for n in first)


def test_patience_ends_a_training(pruned: ModelProto, data: Dataset) -> None:
    settings = replace(QUICK, epochs=9, rate=1e-9, patience=2, norms="frozen")
    assert len(finetune(pruned, data, settings=settings).history) <= 4


def test_accumulation_equals_a_larger_batch(pruned: ModelProto, data: Dataset) -> None:
    settings = replace(QUICK, epochs=1, norms="frozen", clip=0.0)
    large = finetune(pruned, data, settings=replace(settings, batch=64), hold_out=0)
    small = finetune(pruned, data, settings=replace(settings, batch=32, accumulate=2), hold_out=0)
    one, two = weights_of(large.proto), weights_of(small.proto)
    old = weights_of(pruned)
    for name in one:
        moved = np.abs(one[name] - old[name]).max()
        assert np.abs(one[name] - two[name]).max() <= 0.02 * moved + 1e-6


def test_frozen_weights_stay(pruned: ModelProto, data: Dataset) -> None:
    result = finetune(pruned, data, settings=replace(QUICK, freeze=("stem*", "stage1*")), hold_out=0)
    old, new = weights_of(pruned), weights_of(result.proto)
    moved = {n for n in new if not np.array_equal(old[n], new[n]) and "running" not in n}
    assert moved and not any(n.startswith(("stem", "stage1")) for n in moved)


def test_what_is_not_trained_is_listed(pruned: ModelProto, data: Dataset) -> None:
    everything = finetune(pruned, data, settings=replace(QUICK, epochs=1), hold_out=0)
    assert everything.untrained == ()
    some = finetune(pruned, data, settings=replace(QUICK, epochs=1, freeze=("stem*",)), hold_out=0)
    frozen = [node for node in normalize(pruned).graph.node if any(name.startswith("stem") for name in node.input)]
    assert [(layer.node, layer.reason) for layer in some.untrained] == [
        (node.name, "it is frozen") for node in frozen if node.op_type in ("Conv", "BatchNormalization")
    ]
    assert some.untrained


@pytest.mark.parametrize("change", [{"epochs": 0}, {"rate": -1.0}, {"momentum": 1.0}, {"schedule": "none"}], ids=str)
def test_settings_out_of_range(pruned: ModelProto, data: Dataset, change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="OP303"):
        finetune(pruned, data, settings=replace(QUICK, **change))


def scale(model: ModelProto, data: Dataset) -> ModelProto:
    """Stand in for a user's training loop."""
    assert data.labeled
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    return model


def nonsense(model: ModelProto, data: Dataset) -> int:
    return 7


def failing(model: ModelProto, data: Dataset) -> None:
    raise ValueError("no luck")


def test_a_function_as_backend(pruned: ModelProto, data: Dataset) -> None:
    result = finetune(pruned, data, hold_out=0, backend=f"{__name__}:scale")
    old, new = weights_of(pruned), weights_of(result.proto)
    assert np.array_equal(new["stem.conv.weight"], old["stem.conv.weight"] * np.float32(0.5))
    for name, expected in (("nonsense", TrainingError), ("failing", DataError), ("absent", DataError)):
        with pytest.raises(expected):
            finetune(pruned, data, backend=f"{__name__}:{name}")
    with pytest.raises(TrainingError, match="OP908"):
        finetune(pruned, data, backend="torch")


@pytest.fixture
def run(tmp_path: Path, pruned: ModelProto, images: dict[str, np.ndarray]) -> Callable[..., Any]:
    op.save(pruned, tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", image=images["image"], labels=images["labels"])
    fixed = ["finetune", str(tmp_path / "small.onnx"), "-o", str(tmp_path / "tuned.onnx")]

    def invoke(*options: str) -> Any:
        return CliRunner().invoke(cli, [*fixed, "--data", str(tmp_path / "data.npz"), *options])

    return invoke


def test_the_command(run: Callable[..., Any], tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    result = run("--epochs", "3", "--batch", "32", "--flip", "--history", str(history), "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["kept"] == "after" and len(document["history"]) == 3
    assert history.read_text().splitlines()[0] == "epoch,steps,rate,loss,value,seconds,skipped"
    assert len(history.read_text().splitlines()) == 4
    assert op.load(tmp_path / "tuned.onnx").proto.graph.output[0].name == "logits"
    again = run("--epochs", "1")
    assert again.exit_code == 2 and "OP116" in again.stderr


def test_what_the_command_refuses(run: Callable[..., Any], tmp_path: Path) -> None:
    for options, code in (
        (["--resume"], "OP302"),
        (["--epochs", "0"], "OP303"),
        (["--loss", "kl"], "OP904"),
        (["--loss", "hinge"], "OP602"),
        (["--freeze", "nothing*"], "OP304"),
        (["--backend", "torch"], "OP908"),
        (["--accumulate", "4000"], "OP906"),
    ):
        result = run(*options)
        assert result.exit_code == 2 and code in result.stderr, (options, result.stderr)
    diverged = run("--rate", "1e9", "--clip", "0", "--norms", "frozen", "--epochs", "1")
    assert diverged.exit_code == 1 and "OP907" in diverged.stderr
    assert not (tmp_path / "tuned.onnx").exists()


def test_pruning_and_training_in_one_go(tmp_path: Path, images: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "data.npz", image=images["image"])
    fixed = ["prune", str(MODEL), "-o", str(tmp_path / "small.onnx"), "--target", "macs=0.3", "--format", "json"]
    result = CliRunner().invoke(cli, [*fixed, "--data", str(tmp_path / "data.npz"), "--finetune", "2"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)["finetuning"]
    assert len(document["history"]) == 2 and document["metric"] == "kl"
    alone = CliRunner().invoke(cli, [*fixed, "--finetune", "2", "--force"])
    assert alone.exit_code == 2 and "OP302" in alone.stderr


@pytest.mark.slow
def test_killed_and_resumed_from_the_command_line(tmp_path: Path, pruned: ModelProto, images: dict[str, Any]) -> None:
    """A process that is killed leaves a checkpoint from which another one makes the same model, bit for bit."""
    op.save(pruned, tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", image=np.tile(images["image"], (20, 1, 1, 1)))
    known = [
        *("--teacher", str(MODEL), "--data", str(tmp_path / "data.npz"), "--epochs", "2", "--threads", "1", "--crop"),
        "1",
    ]

    def command(output: str, *options: str) -> list[str]:
        fixed = [sys.executable, "-m", "onnxprune", "finetune", str(tmp_path / "small.onnx"), "-q"]
        return [*fixed, "-o", str(tmp_path / output), *known, *options]

    file = tmp_path / "run.npz"
    kept = ("--checkpoint", str(file), "--every", "5")
    with subprocess.Popen(command("tuned.onnx", *kept)) as process:
        while not file.exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert process.returncode != 0 and not (tmp_path / "tuned.onnx").exists()
    subprocess.run(command("tuned.onnx", *kept, "--resume"), check=True)
    subprocess.run(command("whole.onnx"), check=True)
    assert (tmp_path / "tuned.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert (tmp_path / "tuned.onnx").read_bytes() != (tmp_path / "small.onnx").read_bytes()
