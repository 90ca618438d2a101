"""Pruning in steps, with training in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune.data import open_data
from onnxprune.errors import PlanError
from onnxprune.evaluate import evaluate
from onnxprune.train import TrainSettings, prune_iteratively

MODELS = Path(__file__).parents[2] / "models"


def test_a_target_is_met_in_steps() -> None:
    model = op.load(MODELS / "digits_resnet.onnx")
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        data = open_data({"image": arrays["images"], "labels": arrays["labels"]}, model.proto)
    train, judge = data.subset(range(0, 450, 2)), data.subset(range(1, 450, 2))
    settings = op.Settings(target=op.Target("macs", 0.25))
    seen: list[object] = []
    found, rounds = prune_iteratively(
        model, train, settings, 2, training=TrainSettings(epochs=3, batch=32), validation=judge, progress=seen.append
    )
    assert len(rounds) == len(seen) == 2
    shares = [r.pruned.plan.after["macs"] / r.pruned.plan.before["macs"] for r in rounds]
    assert all(0.35 < share <= 0.5 for share in shares)
    assert rounds[0].pruned.plan.after["macs"] == rounds[1].pruned.plan.before["macs"]
    assert evaluate(found, judge, metrics=["top1"])["top1"].model.value > 0.8
    with pytest.raises(PlanError, match="OP302"):
        prune_iteratively(model, train, op.Settings(ratio=0.5), 2)
    with pytest.raises(PlanError, match="OP303"):
        prune_iteratively(model, train, settings, 0)
