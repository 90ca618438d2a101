"""Pruning within a drop in accuracy: the limit holds on samples that weren't used for calibration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.data import Dataset, open_data
from onnxprune.errors import DataError, PlanError, VerificationError
from onnxprune.evaluation import runner
from onnxprune.sensitivity import drop
from onnxprune.settings import TrainSettings
from onnxprune.settings.planning import Constraints, PlanSettings, Target
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.drop import DropMeasure, Parts, divide, samples_to_decide
from onnxprune.workflow.max_drop import prune_within
from onnxprune.workflow.training import Training
from tests.data.support import model
from tests.report.network import network
from tests.sensitivity.support import MODELS, digits
from tests.toolbox import run_once

with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
    IMAGES, LABELS = arrays["images"], arrays["labels"]


UNIFORM = PlanSettings(allocation="uniform")


def samples(count: int | None = None) -> Dataset:
    return open_data({"image": IMAGES[:count], "labels": LABELS[:count]}, digits().graph.proto)


def test_the_smallest_model_within_the_drop() -> None:
    """Trials converge to the least cost; the result is judged on samples that chose and calibrated nothing."""
    tried: list[str] = []
    found = prune_within(digits(), UNIFORM, samples(), 0.03, limit=150, progress=lambda phase, *_: tried.append(phase))
    assert found.metric == "top1" and found.evaluation.samples == 150
    trials = {match[0] for phase in tried if (match := re.match(r"trial \d", phase))}
    assert len(trials) == len(found.trials) and any("repair" in phase for phase in tried)
    best = min(t.share for t in found.trials if t.accepted)
    assert all(t.share < best for t in found.trials if not t.accepted)
    assert all(t.loss <= 0.03 for t in found.trials if t.accepted)
    assert found.pruned.plan.after["macs"] <= best * found.pruned.plan.before["macs"]
    assert found.pruned.verification is not None and found.pruned.verification.passed

    order = np.random.default_rng(0).permutation(len(IMAGES))[:150]  # evaluated independently
    right = [
        (run_once(model, {"image": IMAGES[order]})["logits"].argmax(axis=1) == LABELS[order]).mean()
        for model in (digits().graph.proto, found.proto)
    ]
    assert found.drop.value == pytest.approx(right[0] - right[1])
    assert found.drop.low <= found.drop.value <= found.drop.high


def test_parts_share_no_samples() -> None:
    """Calibration, choice and judgment; what is trained on includes the first and nothing of the others."""
    x = np.arange(100, dtype=np.float32).reshape(100, 1)
    net = model("float[N,1] x")
    for training in (False, True):
        parts = divide(open_data({"x": x}, net), 20, 0, training=training)
        own = [
            {int(v) for batch in part.batches(100) for v in batch.inputs["x"].ravel()}
            for part in (parts.calibration, parts.training, parts.choosing, parts.judging, parts.known)
            if part is not None
        ]
        assert [len(part) for part in own] == ([20, 60, 20, 20, 80] if training else [20, 20, 40, 40, 60])
        assert own[0] <= own[1] and not own[1] & own[2] and not (own[1] | own[2]) & own[3]
        assert own[4] == own[1] | own[2]  # for models that nothing was fitted for
    parts = divide(open_data({"x": x}, net), 50, 0, training=True, validated=0.1)
    assert parts.validation is not None and len(parts.validation) == 6 and len(parts.calibration) == 50
    held, trained = ({*next(part.batches(100)).inputs["x"].ravel()} for part in (parts.validation, parts.training))
    assert len(trained) == 54 and held.isdisjoint(trained)


def test_labels_that_look_shifted_are_refused() -> None:
    data = open_data({"image": IMAGES, "labels": (LABELS + 1) % 10}, digits().graph.proto)
    with pytest.raises(DataError, match="adding -1 to label_offset would make 8") as caught:
        prune_within(digits(), UNIFORM, data, 0.03)
    assert caught.value.code == "OP713"


@pytest.mark.parametrize("labeled", [True, False])
def test_inputs_that_the_original_sees_nothing_in_are_refused(labeled: bool) -> None:
    """In the wrong scale, all images get the same answer, and so would a network that ignores its input."""
    given = {"image": IMAGES * 1e-4, **({"labels": LABELS} if labeled else {})}
    with pytest.raises(DataError, match="constant answer") as caught:
        prune_within(digits(), UNIFORM, open_data(given, digits().graph.proto), 0.03)
    assert caught.value.code == "OP713"


def test_a_drop_that_a_constant_answer_keeps_is_refused() -> None:
    chosen = np.flatnonzero((LABELS == 3) | (np.arange(len(LABELS)) % 40 == 0))
    data = open_data({"image": IMAGES[chosen], "labels": LABELS[chosen]}, digits().graph.proto)
    with pytest.raises(DataError, match="ignores its input") as caught:
        prune_within(digits(), UNIFORM, data, 0.5)
    assert caught.value.code == "OP713" and caught.value.where == "max_drop"


def test_gains_on_wrong_labels_do_not_hide_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loses as many right answers as it wins by chance isn't accepted."""
    x = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    net = model("float[N,4] x", outputs="float[N,4] y", body="y = Identity(x)")
    other = model(
        "float[N,4] x", outputs="float[N,4] y", body="a = Constant<value=float[4]{0,1,0,0}>()\n y = Add(x, a)"
    )
    its, mine = x.argmax(axis=1), run_once(other, {"x": x})["y"].argmax(axis=1)
    labels = its.copy()
    changed = np.flatnonzero(its != mine)
    labels[changed[::2]] = mine[changed[::2]]  # half of what changed becomes right
    data = open_data({"x": x, "labels": labels}, net)
    measure = DropMeasure(net, Parts(data, data, data, data), 0.05, 0)
    measure.check(lambda *_: None)
    found = measure(other, lambda *_: None)
    assert abs(drop(found, "top1").value) < 0.01 and not measure.accepts(found)
    assert measure.accepts(measure(net, lambda *_: None))


def test_hopeless_models_are_seen_on_some_samples() -> None:
    """Sorted by class, the first samples alone would mislead: there, this model is always wrong."""
    x = np.repeat(np.eye(4, dtype=np.float32), 400, axis=0)
    net = model("float[N,4] x", outputs="float[N,4] y", body="y = Identity(x)")
    data = open_data({"x": x, "labels": x.argmax(axis=1)}, net)

    def without(classes: str) -> onnx.ModelProto:
        body = f"m = Constant<value = float[4] {{{classes}}}>()\n y = Mul(x, m)"
        return model("float[N,4] x", outputs="float[N,4] y", body=body)

    measure = DropMeasure(net, divide(data, 400, 0, training=False), 0.3, 0)
    measure.check(lambda *_: None)
    assert measure(without("-1, 1, 1, 1"), lambda *_: None).samples == 600  # 25 % wrong
    found = measure(without("-1, -1, -1, 1"), lambda *_: None)
    assert found.samples < 100 and drop(found, "top1").value == pytest.approx(0.75, abs=0.1)


def test_what_comes_in_order_is_evaluated_whole() -> None:
    """Batches of a function can't be mixed: the first 200, of the class that is lost, tell nothing of the rest."""
    x = np.repeat(np.eye(4, dtype=np.float32), 200, axis=0)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield from ({"x": part} for part in x.reshape(-1, 16, 4))

    net = model("float[N,4] x", outputs="float[N,4] y", body="y = Identity(x)")
    body = "m = Constant<value = float[4] {-1, 1, 1, 1}>()\n y = Mul(x, m)"
    measure = DropMeasure(net, divide(open_data(batches, net), 400, 0, training=False), 0.35, 0)
    measure.check(lambda *_: None)
    found = measure(model("float[N,4] x", outputs="float[N,4] y", body=body), lambda *_: None)
    assert found.samples == 200 and measure.accepts(found)


def test_the_original_runs_once_on_the_samples_that_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outputs are those of before, also where an evaluation ended early."""
    data, net = samples(200), digits().graph.proto
    measure, run = DropMeasure(net, divide(data, 64, 0, training=False), 0.05, 0), runner.run
    measure.check(lambda *_: None)
    counts: list[int] = []

    def counted(opened: Any, feeds: Any) -> Any:
        counts.append(len(feeds["image"]))
        return run(opened, feeds)

    monkeypatch.setattr(runner, "run", counted)
    found = measure(net.__class__.FromString(net.SerializeToString()), lambda *_: None)
    assert sum(counts) == len(measure.parts.choosing) == 68 and drop(found, measure.metric).value == 0


def test_the_samples_that_decide_a_drop() -> None:
    """At that number, the interval of the paired difference is as wide as the drop; Bonett and Price, by hand."""
    for allowed in (0.01, 0.02, 0.1):
        n = samples_to_decide(allowed)
        assert n is not None
        up, down = (allowed * n + 1) / (n + 2), (2 * allowed * n + 1) / (n + 2)
        half = 1.959964 * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
        assert half == pytest.approx(allowed, rel=0.01)
    assert 250 < (samples_to_decide(0.02) or 0) < 1000 and samples_to_decide(0.0) is None


def test_what_samples_cannot_tell_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data = open_data({"image": IMAGES, "labels": LABELS}, digits().graph.proto)
    measure = DropMeasure(digits().graph.proto, divide(data, 512, 0, training=False), 0.02, 0)
    measure.check(lambda *_: None)
    warnings = [record.getMessage() for record in caplog.records]
    assert any(w.startswith("112 samples that judge the result can't decide a drop of 2%") for w in warnings)
    assert any("top-1 is 99." in w or "top-1 is 100" in w for w in warnings)  # as on training data
    caplog.clear()
    noisy = np.where(np.arange(len(LABELS)) % 10 == 0, (LABELS + 1) % 10, LABELS)
    data = open_data({"image": IMAGES, "labels": noisy}, digits().graph.proto)
    DropMeasure(digits().graph.proto, divide(data, 512, 0, training=False), 0.3, 0).check(lambda *_: None)
    assert not caplog.records


def test_labels_that_go_with_no_output_are_named(caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).standard_normal((90, 4, 3)).astype(np.float32)
    net = model("float[N,4,3] x", outputs="float[N,4,3] y", body="y = Identity(x)")
    data = open_data({"x": x, "labels": x.argmax(axis=1)[:, :2].astype(np.float32)}, net)
    measure = DropMeasure(net, Parts(data, data, data, data), 0.05, 0)
    measure.check(lambda *_: None)
    assert measure.metric == "nmse" and "labels aren't used" in caplog.records[0].getMessage()


def test_limits_are_met_and_the_drop_is_checked() -> None:
    targets = Target("macs", 0.7), Target("params", 0.6)
    found = prune_within(digits(), replace(UNIFORM, target=targets), samples(), 0.2, limit=150)
    plan = found.pruned.plan
    assert len(found.trials) == 1 and found.trials[0].accepted
    assert all(plan.after[t.quantity] <= t.value * plan.before[t.quantity] for t in targets)
    with pytest.raises(VerificationError, match="the limits cost") as caught:
        prune_within(digits(), replace(UNIFORM, target=Target("macs", 0.1)), samples(), 0.001, limit=150, method="bias")
    assert caught.value.code == "OP506"


def test_features_beside_scores() -> None:
    """Of two outputs, the drop is that of the one that labels are of."""
    proto = network()
    features = next(node.output[0] for node in proto.graph.node if node.name == "flat")
    proto.graph.output.insert(0, helper.make_tensor_value_info(features, TensorProto.FLOAT, ["N", 8]))
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((96, 3, 8, 8)) + 3 * rng.standard_normal((96, 3, 1, 1))).astype(np.float32)
    outputs = run_once(proto, {"image": images})
    labels = next(value for name, value in outputs.items() if name != features).argmax(axis=1)
    data = open_data({"image": images, "labels": labels}, proto)
    found = prune_within(analyze(proto), UNIFORM, data, 0.3)
    assert found.metric == "top1" and found.evaluation["top1"].original is not None
    assert found.evaluation["top1"].original.value == 1


@pytest.mark.slow
def test_another_cost_is_minimized_and_trials_are_trained() -> None:
    found = prune_within(
        *(digits(), UNIFORM, samples(), 0.05), minimize="params", limit=100, training=Training(TrainSettings(epochs=1))
    )
    plan = found.pruned.plan
    best = min(t.share for t in found.trials if t.accepted)
    assert plan.after["params"] <= best * plan.before["params"] < plan.before["params"]
    assert found.tuned is not None and found.proto is found.tuned.proto
    assert found.evaluation.samples == int(0.2 * len(IMAGES))


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
        prune_within(digits(), UNIFORM, samples(2), 0.1)
    assert few.value.code == "OP712"
