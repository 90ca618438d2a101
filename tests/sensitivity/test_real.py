"""A trained ResNet-56 at half its multiply-accumulates, with no label and no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.budget import Target
from onnxprune.data import open_data
from onnxprune.evaluate import evaluate
from onnxprune.pipeline import Settings, analyse, make_plan, prune
from onnxprune.plan import apply_plan
from onnxprune.recover import Inputs, recover

SHARED = Path(__file__).parents[2] / "../shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the models and data of ../shared"),
]


def test_about_two_points_are_lost_where_equal_shares_lose_four() -> None:
    analysis = analyse(SHARED / "models/cifar_resnet56_dynamo.onnx")
    dense = analysis.graph.proto
    calibration = open_data(SHARED / "data/cifar10_calib4660.npz", dense, limit=512)
    judged = open_data(SHARED / "data/cifar10_test423.npz", dense)

    def batches() -> list[Inputs]:
        return [batch.inputs for batch in calibration.batches(32)]

    settings = Settings(target=Target("macs", 0.5), criterion="obs", allocation="reconstruction")
    pruned = prune(analysis, make_plan(analysis, settings, batches=batches))
    assert pruned.plan.after["macs"] <= 0.5 * pruned.plan.before["macs"]
    before = evaluate(pruned.proto, judged, metrics=["top1"])["top1"].model.value
    recover(apply_plan(analysis.graph, pruned.plan), pruned.proto, batches)
    change = evaluate(pruned.proto, judged, against=dense, metrics=["top1"])["top1"].difference
    assert before < 0.8
    assert change is not None and change.value >= -0.025
