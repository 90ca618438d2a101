"""Pruning within a drop in accuracy: the limit holds on samples that weren't used for calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.data import Dataset, open_data
from onnxprune.errors import DataError, PlanError, VerificationError
from onnxprune.settings.planning import Constraints, PlanSettings
from onnxprune.workflow.max_drop import prune_within
from tests.sensitivity.support import MODELS, digits
from tests.toolbox import run_once

with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
    IMAGES, LABELS = arrays["images"], arrays["labels"]


UNIFORM = PlanSettings(allocation="uniform")


def samples(count: int | None = None) -> Dataset:
    return open_data({"image": IMAGES[:count], "labels": LABELS[:count]}, digits().graph.proto)


def test_the_smallest_model_within_the_drop() -> None:
    """Trials converge to the least cost; the drop is measured on samples not used for calibration."""
    tried: list[str] = []
    found = prune_within(digits(), UNIFORM, samples(), 0.03, limit=150, progress=lambda phase, *_: tried.append(phase))
    assert found.metric == "top1" and found.evaluation.samples == len(IMAGES) - 150
    trials = dict.fromkeys(phase.partition(":")[0] for phase in tried if phase.startswith("trial "))
    assert len(trials) == len(found.trials) and set(tried) > {f"{trial}: repair" for trial in trials}
    best = min(t.share for t in found.trials if t.loss <= 0.03)
    assert all(t.share < best for t in found.trials if t.loss > 0.03)
    assert found.pruned.plan.after["macs"] <= best * found.pruned.plan.before["macs"]
    assert found.pruned.verification is not None and found.pruned.verification.passed

    order = np.random.default_rng(0).permutation(len(IMAGES))[150:]  # evaluated independently
    right = [
        (run_once(model, {"image": IMAGES[order]})["logits"].argmax(axis=1) == LABELS[order]).mean()
        for model in (digits().graph.proto, found.pruned.proto)
    ]
    change = found.evaluation["top1"].difference
    assert change is not None and change.value == pytest.approx(right[1] - right[0]) and change.value >= -0.03


def test_no_removal_is_good_enough() -> None:
    """Only the first layer may lose channels, at least half of them, and only means are repaired."""
    settings = replace(UNIFORM, constraints=Constraints(include=("/stem/*",), round_to=8))
    with pytest.raises(VerificationError) as caught:
        prune_within(digits(), settings, samples(), 0.0, method="bias")
    assert caught.value.code == "OP506" and caught.value.exit_status == 1


def test_refusals() -> None:
    with pytest.raises(PlanError) as caught:
        prune_within(digits(), UNIFORM, samples(), 1.0)
    assert caught.value.code == "OP303"
    with pytest.raises(DataError) as few:
        prune_within(digits(), UNIFORM, samples(1), 0.1)
    assert few.value.code == "OP712"
