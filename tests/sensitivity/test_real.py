"""Trained networks at half their multiply-accumulates, with no label and no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxprune as op
from onnxprune.data import open_data
from onnxprune.evaluation import evaluate
from onnxprune.model.stream import Inputs
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.settings.planning import PlanSettings, Target
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.pruning import prune

SHARED = Path(__file__).parents[2] / "../shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the models and data of ../shared"),
]


def halved(name: str, inputs: str | Path) -> tuple[float, float]:
    """Halve a network and repair it from 512 inputs; return the change of its accuracy before and after the repair."""
    analysis = analyze(SHARED / f"models/{name}.onnx")
    dense = analysis.graph.proto
    calibration = open_data(inputs, dense, limit=512)
    judged = open_data(SHARED / "data/cifar10_test423.npz", dense)

    def batches() -> list[Inputs]:
        return [batch.inputs for batch in calibration.batches(32)]

    def change() -> float:
        found = evaluate(pruned.proto, judged, against=dense, metrics=["top1"])["top1"].difference
        assert found is not None
        return found.value

    settings = PlanSettings(target=Target("macs", 0.5), criterion="obs", allocation="reconstruction")
    pruned = prune(analysis, op.plan(analysis, settings, data=batches))
    assert pruned.plan.after["macs"] <= 0.5 * pruned.plan.before["macs"]
    before = change()
    recover(apply_plan(analysis.graph, pruned.plan), pruned.proto, batches)
    return before, change()


def test_two_points_are_lost_at_most() -> None:
    before, after = halved("cifar_resnet56_dynamo", SHARED / "data/cifar10_calib4660.npz")
    assert before < -0.1
    assert after >= -0.02


def test_without_any_data_much_is_won_back() -> None:
    before, after = halved("cifar_resnet20_ts", "random")
    assert before < -0.6
    assert after > -0.3
