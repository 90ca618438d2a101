"""Pruning in steps, with training in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.data import Dataset, open_data
from onnxprune.errors import PlanError
from onnxprune.evaluation import evaluate
from onnxprune.settings.planning import Target
from onnxprune.settings.training import TrainSettings
from onnxprune.workflow import iterative
from onnxprune.workflow.iterative import prune_iteratively

MODELS = Path(__file__).parents[2] / "models"


MODEL = MODELS / "digits_resnet.onnx"
SETTINGS = op.PlanSettings(target=op.Target("macs", 0.25), allocation="uniform")
TRAINING = TrainSettings(epochs=3, batch=32)


@pytest.fixture(scope="module")
def data() -> Dataset:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        return open_data({"image": arrays["images"], "labels": arrays["labels"]}, op.load(MODEL).proto)


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_target_is_met_in_steps(data: Dataset) -> None:
    model, settings = op.load(MODEL), SETTINGS
    train, judge = data.subset(range(0, 450, 2)), data.subset(range(1, 450, 2))
    seen: list[tuple[str, int, int | None]] = []
    found, rounds = prune_iteratively(
        model, train, settings, 2, training=TRAINING, validation=judge, progress=lambda *at: seen.append(at)
    )
    assert len(rounds) == 2
    assert list(dict.fromkeys(phase.partition(":")[0] for phase, *_ in seen)) == ["step 1 of 2", "step 2 of 2"]
    shares = [r.pruned.plan.after["macs"] / r.pruned.plan.before["macs"] for r in rounds]
    assert all(0.35 < share <= 0.5 for share in shares)
    assert rounds[0].pruned.plan.after["macs"] == rounds[1].pruned.plan.before["macs"]
    assert evaluate(found, judge, metrics=["top1"])["top1"].model.value > 0.8
    assert rounds[0].plan == rounds[0].pruned.plan
    analysis = op.analyze(model)
    again = op.prune(analysis, rounds[1].plan)  # both steps at once, proved against the original
    assert again.verification is not None and again.verification.passed
    first, second = weights_of(again.proto), weights_of(found)
    assert {n: a.shape for n, a in first.items()} == {n: a.shape for n, a in second.items()}
    with pytest.raises(PlanError, match="OP302"):
        prune_iteratively(model, train, op.PlanSettings(ratio=0.5), 2)
    with pytest.raises(PlanError, match="OP303"):
        prune_iteratively(model, train, settings, 0)


def test_what_both_steps_remove_is_what_is_left_out_of_the_original(data: Dataset) -> None:
    """Without training and repair, the second step's model holds rows and columns of the original."""
    idle = TrainSettings(epochs=1, batch=32, rate=1e-12, optimizer="sgd", norms="frozen", decay=0.0)
    found, rounds = prune_iteratively(MODEL, data, SETTINGS, 2, training=idle, method=None)
    once = weights_of(op.prune(op.analyze(MODEL), rounds[-1].plan).proto)
    twice = weights_of(found)
    assert all(np.allclose(once[n], twice[n], rtol=1e-5, atol=1e-7) for n in once)
    other = weights_of(op.prune(op.analyze(MODEL), op.plan(op.analyze(MODEL), SETTINGS)).proto)
    assert not all(a.shape == once[n].shape and np.allclose(once[n], a) for n, a in other.items())


def test_rewinding_starts_from_early_weights(data: Dataset) -> None:
    """The early model stands out by its size: untrained, it is what comes back."""
    early = op.load(MODEL).proto
    for tensor in early.graph.initializer:
        if tensor.name.endswith("conv.weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
    idle = TrainSettings(epochs=1, batch=32, rate=1e-12, optimizer="sgd", norms="frozen", decay=0.0)
    found, rounds = prune_iteratively(MODEL, data, SETTINGS, 1, training=idle, rewind=early)
    plain = weights_of(rounds[0].pruned.proto)
    rewound = weights_of(found)
    doubled = [n for n in plain if n.endswith("conv.weight")]
    assert doubled and all(np.allclose(rewound[n], 2 * plain[n], rtol=1e-5) for n in doubled)
    assert all(np.allclose(rewound[n], plain[n], rtol=1e-5) for n in plain if n not in doubled)
    with pytest.raises(PlanError, match="OP307"):
        prune_iteratively(MODEL, data, SETTINGS, 1, training=idle, rewind=MODELS / "digits_cnn_dynamo.onnx")


def test_the_command(tmp_path: Path) -> None:
    def run(*options: str) -> Result:
        fixed = ["prune", str(MODEL), "-o", str(tmp_path / "small.onnx"), "--target", "macs=25%", "--format", "json"]
        return CliRunner().invoke(cli, [*fixed, *options])

    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        np.savez(tmp_path / "data.npz", image=arrays["images"])
    given = ("--data", str(tmp_path / "data.npz"))
    result = run(*given, "--finetune", "1", "--steps", "2", "--rewind", str(MODEL))
    assert result.exit_code == 0, result.output
    assert "step 2 of 2" in result.stderr
    document = json.loads(result.stdout)
    assert document["verification"]["passed"] and document["finetuning"]["metric"] == "kl"
    cost = document["cost"]
    assert 0.19 < cost["after"]["macs"] / cost["before"]["macs"] <= 0.25
    for options in (("--steps", "2"), ("--rewind", "x.onnx"), ("--finetune", "1", "--steps", "2", "--plan", "p.json")):
        refused = run(*given, "--force", *options)
        assert refused.exit_code == 2 and "OP302" in refused.stderr, refused.stderr


def test_absolute_limits_become_steps_of_a_share() -> None:
    costs = {"macs": 1000, "params": 50}
    assert iterative._share(Target.parse("macs=0.25k"), costs) == 0.25
    assert (
        iterative._share(Target.parse("params=1k"), costs) == 1.0
        and iterative._share(Target("macs", 0.5), costs) == 0.5
    )
