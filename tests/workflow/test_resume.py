"""A stopped run goes on where it was, and ends with the same bytes as one that wasn't stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.errors import TrainingError
from onnxprune.model.resumable import Records, read_archive
from onnxprune.model.session import run, session
from onnxprune.recover import repair
from onnxprune.sensitivity import OutputError
from onnxprune.workflow import max_drop
from tests.cli.support import document
from tests.report.network import network

TARGET = {"target": op.Target("macs", 0.5)}
DROP = {"max_drop": 0.2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(network(), path := tmp_path / "model.onnx")
    return path


@pytest.fixture
def data(model: Path, tmp_path: Path) -> str:
    rng = np.random.default_rng(0)  # colors differ from image to image, so that answers do
    images = (rng.standard_normal((96, 3, 8, 8)) + 3 * rng.standard_normal((96, 3, 1, 1))).astype(np.float32)
    (logits,) = run(session(model), {"image": images}).values()
    labels = logits.argmax(1)
    labels[::7] = (labels[::7] + 1) % logits.shape[1]
    np.savez(path := tmp_path / "data.npz", image=images, labels=labels)
    return str(path)


class Stop:
    """Progress that interrupts the work once a phase has been reported a number of times."""

    def __init__(self, phase: str, times: int) -> None:
        self.phase, self.left = phase, times

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        self.left -= self.phase in phase
        if not self.left:
            raise KeyboardInterrupt


def pruned(model: Path, data: str, **options: Any) -> bytes:
    return op.prune_model(model, data=data, threads=1, **options).model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("what", "stops"),
    [
        (TARGET, [("measure sensitivity", 2), ("repair", 2)]),
        (TARGET | {"finetune": 2}, [("train: epoch 2", 1)]),
        (DROP, [("trial 1", 4), ("trial 1", 6), ("trial 2", 1), ("judge", 1)]),
    ],
)
def test_the_same_bytes(
    model: Path,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: Mapping[str, Any],
    stops: list[tuple[str, int]],
) -> None:
    """Interrupted again and again; what is done isn't done again."""
    kept = tmp_path / "kept.npz"
    work = {"measured": 0, "fitted": 0}
    judge, refit = OutputError.__call__, repair._refit

    def counted(self: OutputError, *args: Any) -> float:
        work["measured"] += 1
        return judge(self, *args)

    def fitted(*args: Any) -> Any:
        work["fitted"] += 1
        return refit(*args)

    monkeypatch.setattr(OutputError, "__call__", counted)
    monkeypatch.setattr(repair, "_refit", fitted)
    whole = pruned(model, data, **what)
    once = dict(work)
    for phase, times in stops:
        with pytest.raises(KeyboardInterrupt):
            pruned(model, data, **what, checkpoint=kept, resume=True, progress=Stop(phase, times))
        assert kept.exists()
    assert pruned(model, data, **what, checkpoint=kept, resume=True) == whole
    per_group, per_repair = once["measured"] // 2, once["fitted"]
    assert work["measured"] <= 2 * once["measured"] + per_group * len(stops)
    assert work["fitted"] <= 2 * per_repair + len(stops)  # at most the layer that was interrupted


def test_a_plan_is_not_made_twice(model: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies differ from run to run; the layers that are repaired already must go with the plan."""
    kept = tmp_path / "kept.npz"
    what = {"target": op.Target("macs", 0.6), "max_drop": 0.4, "checkpoint": kept, "round_to": 1}
    with pytest.raises(KeyboardInterrupt):
        pruned(model, data, **what, progress=Stop("judge", 1))
    notes, _ = read_archive(kept)
    first = json.loads(notes["records"]["trial1/plan"])

    def another(analysis: Any, settings: Any, **known: Any) -> Any:
        return op.plan(analysis, dataclasses.replace(settings, target=op.Target("macs", 0.9)), **known)

    monkeypatch.setattr(max_drop, "plan", another)
    found = op.prune_model(model, data=data, threads=1, **what, resume=True)
    assert json.loads(found.plan.to_json())["removed"] == first["removed"]


def test_other_work_is_refused(model: Path, data: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    pruned(model, data, **TARGET, checkpoint=kept)
    with pytest.raises(TrainingError, match="other work") as caught:
        pruned(model, data, target=op.Target("macs", 0.7), checkpoint=kept, resume=True)
    assert caught.value.code == "OP905"
    arrays = dict(np.load(data))
    np.savez(data, **{**arrays, "image": arrays["image"] + 1})  # another file of the same name
    with pytest.raises(TrainingError, match="other work"):
        pruned(model, data, **TARGET, checkpoint=kept, resume=True)
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="not a valid checkpoint"):
        pruned(model, data, **TARGET, checkpoint=kept, resume=True)


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    with pytest.raises(KeyboardInterrupt), Records(path, "a") as records:
        records.keep("x/1", [1.5, float("inf")], {"w": np.arange(3.0)})
        records.keep("x/2", "text")
        records.keep("y", None, {"v": np.ones((0, 2), np.float32)})
        records.drop("x/2")
        raise KeyboardInterrupt
    found = Records(path, "a", resume=True)
    assert found["x/1"] == [1.5, float("inf")] and "x/2" not in found and found["y"] is None
    np.testing.assert_array_equal(found.arrays("x/1")["w"], np.arange(3.0))
    assert found.arrays("y")["v"].shape == (0, 2)
    assert "x/1" not in Records(path, "b")  # a new start
    with pytest.raises(TrainingError, match="other work"):
        Records(path, "b", resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["records.npz"]


def test_without_a_file_only_notes_are_kept(tmp_path: Path) -> None:
    with Records() as records:
        records.keep("x", [1])
        records.keep("y", [2], {"w": np.arange(3.0)})
    assert records["x"] == [1] and "y" not in records and not records.arrays("y")


def test_sensitivities_that_chose_channels_are_part_of_the_result(model: Path, data: str) -> None:
    """They are those that the command `sensitivity` measures; without data there are none."""
    found = {curve.group: curve for curve in op.prune_model(model, data=data, **TARGET).curves}
    alone = document("sensitivity", model, "--data", data)["groups"]
    assert alone and found.keys() == {group["group"] for group in alone}
    for group in alone:
        curve = found[group["group"]]
        assert [[p.removed, p.error] for p in curve.points] == group["points"] and list(curve.order) == group["order"]
    assert not op.prune_model(model, **TARGET).curves
