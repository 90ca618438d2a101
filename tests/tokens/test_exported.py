"""ViT-S as PyTorch exports it, with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxprune as op
from models.fill import fill
from onnxprune.cost.cost import model_cost
from onnxprune.shapes import concretize

FOLDER = Path(__file__).parents[3] / "shared" / "models" / "architectures"


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
def test_half_the_macs(exporter: str) -> None:
    path = FOLDER / f"vit_small_{exporter}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} isn't there")
    analysis = op.analyze(fill(op.load(path).proto))
    plan = op.plan(analysis, target=op.Target("macs", 0.5), axes=("tokens",))
    small = op.prune(analysis, plan)
    assert [*plan.tokens.values()] == [(2, 2)] and small.links[0].error < 1e-5
    assert not small.links[1:] and small.verification is not None and small.verification.passed
    assert 0.45 < model_cost(small.proto, concretize(small.proto)).macs / plan.before["macs"] <= 0.5
