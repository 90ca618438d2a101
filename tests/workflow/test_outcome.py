"""What a run brought, against ONNX Runtime on the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto
from onnx.parser import parse_model

import onnxprune as op
from onnxprune.benchmarking import speed
from onnxprune.data import Data
from onnxprune.errors import UsageError
from onnxprune.settings import PruneSettings, build
from onnxprune.workflow import outcome as module
from onnxprune.workflow.outcome import Outcome, outcome
from onnxprune.workflow.prune_model import PruneResult

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_resnet.onnx"
TRAIN = MODELS / "digits_train.npz"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)


def shrunk(**options: Any) -> tuple[PruneResult, Outcome]:
    settings = build(PruneSettings, options)
    result = op.prune_model(DIGITS, settings)
    return result, outcome(result, settings)


def classes(model: ModelProto | Path, images: np.ndarray) -> np.ndarray:
    source = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0].argmax(axis=1))


def test_held_out_samples_calibrated_nothing() -> None:
    result, found = shrunk(target=op.Target("macs", 0.3), data=str(TRAIN))
    calibrated = op.open_data(TRAIN, op.load(DIGITS).proto, limit=512)
    assert isinstance(result.data, Data) and result.data.chosen is not None and calibrated.chosen is not None
    assert found.judged == "held out" and not set(result.data.chosen) & set(calibrated.chosen)
    assert len(result.data.chosen) == 1347 - 512
    assert found.fidelity is not None and found.fidelity.answers == "kept" and found.fidelity.samples <= 500
    assert found.fitted and not found.unchanged and found.speed is not None and found.speed.speedup.value > 0
    with np.load(TRAIN) as arrays:
        images, labels = arrays["images"][result.data.chosen], arrays["labels"][result.data.chosen]
    pruned, original = classes(result.model.proto, images), classes(DIGITS, images)
    assert found.fidelity.value.value == pytest.approx(np.mean(pruned == original), abs=0.02)  # at most 500 are drawn
    assert found.fidelity.accuracy is not None and found.fidelity.accuracy.metric == "top1"
    assert found.fidelity.accuracy.model.value == pytest.approx(np.mean(pruned == labels), abs=0.02)


def test_few_samples_are_fitted_better_than_others() -> None:
    """The same by ONNX Runtime alone, on the samples that repaired the model and on others."""
    result, found = shrunk(target=op.Target("macs", 0.15), data=str(TRAIN), limit=24)
    assert isinstance(result.fitted_on, Data) and result.fitted_on.chosen is not None and len(result.fitted_on) == 24
    assert found.calibrated is not None and found.fidelity is not None and found.overfitted
    with np.load(TRAIN) as arrays:
        images = arrays["images"][result.fitted_on.chosen]
    agree = np.mean(classes(result.model.proto, images) == classes(DIGITS, images))
    assert found.calibrated.value.value == pytest.approx(agree) and agree > found.fidelity.value.high
    _, enough = shrunk(target=op.Target("macs", 0.5), data=str(TRAIN))
    assert enough.calibrated is not None and not enough.overfitted


def test_samples_that_the_network_may_have_been_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """README's first command judges on such samples. With labels that the original often misses, nothing is said."""
    shrunk(target=op.Target("macs", 0.3), data=str(TRAIN), limit=64)
    said = "the original's top-1 is 100.0% on these samples; if it was trained on them, expect a larger drop on new"
    assert said in caplog.text
    caplog.clear()
    with np.load(TRAIN) as arrays:
        labels = np.where(np.arange(len(arrays["labels"])) % 20 == 0, (arrays["labels"] + 1) % 10, arrays["labels"])
        np.savez(tmp_path / "other.npz", images=arrays["images"], labels=labels)
    shrunk(target=op.Target("macs", 0.3), data=str(tmp_path / "other.npz"), limit=64)
    assert "trained on them" not in caplog.text


def test_few_samples_judge_what_they_calibrated(tmp_path: Path) -> None:
    with np.load(TRAIN) as arrays:
        np.savez(tmp_path / "few.npz", images=arrays["images"][:30])
    result, found = shrunk(target=op.Target("macs", 0.3), data=str(tmp_path / "few.npz"), recover="none")
    assert found.judged == "calibration" and found.fidelity is not None
    with np.load(TRAIN) as arrays:
        images = arrays["images"][:30]
    agreement = np.mean(classes(result.model.proto, images) == classes(DIGITS, images))
    assert found.fidelity.samples == 30 and found.fidelity.value.value == pytest.approx(agreement)
    assert found.fidelity.accuracy is None  # there are no labels
    assert not found.fitted


def test_without_data_inputs_are_generated() -> None:
    _, found = shrunk(target=op.Target("macs", 0.5))
    assert found.judged == "generated" and found.fidelity is not None and found.fidelity.metric == "agreement"
    _, found = shrunk(target=op.Target("macs", 0.5), data="random", limit=64)
    assert found.judged == "generated" and found.fitted


def test_generated_inputs_have_the_sizes_that_the_model_was_traced_at() -> None:
    """An exporter baked a length in that the file calls symbolic."""
    first, second = ("{" + ",".join(map(str, np.linspace(-1, 1, n))) + "}" for n in (32, 24))
    proto = parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,S,4] x) => (float[N,S,3] y) <float[4,8] a = {first}, float[8,3] b = {second}>
        {{
            h = MatMul(x, a)
            r = Relu(h)
            m = MatMul(r, b)
            shape = Constant <value_ints = [0, 5, 3]> ()
            y = Reshape(m, shape)
        }}""")
    settings = build(PruneSettings, {"ratio": 0.5, "input_shapes": {"x": (1, 5, 4)}})
    found = outcome(op.prune_model(proto, settings), settings)
    assert not found.uncompared and found.fidelity is not None and found.judged == "generated"


def test_nothing_removed_is_said() -> None:
    assert shrunk(ratio=0.0)[1].unchanged
    assert not shrunk(ratio=0.5)[1].unchanged


def test_what_the_run_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = shrunk(max_drop=0.05, data=str(TRAIN), limit=64)
    assert result.evaluation is not None
    result.plan.settings["latency"] = {
        "provider": "cpu",
        "original_seconds": 0.004,
        "measured_share": {"value": 0.5, "low": 0.4, "high": 0.8},
    }
    monkeypatch.setattr(module, "evaluate", None)
    monkeypatch.setattr(module, "TimedSession", None)
    found = outcome(replace(result, fitted_on=None), PruneSettings())
    assert found.speed is not None and (found.speed.before, found.speed.after) == (0.004, 0.002)
    assert (found.speed.speedup.low, found.speed.speedup.value, found.speed.speedup.high) == (1.25, 2, 2.5)
    assert found.fidelity is not None and found.fidelity.samples == result.evaluation.samples


def test_a_slow_model_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.0)
    _, found = shrunk(ratio=0.5)
    assert found.speed is None and "a run takes" in found.untimed and found.fidelity is not None


def test_a_provider_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("OP608", "the execution provider isn't available")

    monkeypatch.setattr(module, "TimedSession", refuse)
    _, found = shrunk(ratio=0.5)
    assert found.speed is None and found.untimed == "the execution provider isn't available"
    with pytest.raises(UsageError, match="OP608"):  # an unknown one is refused before the work
        shrunk(ratio=0.5, provider="nosuch")
