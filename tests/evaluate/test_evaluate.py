from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.data import Recipe, open_data
from onnxprune.errors import UsageError, VerificationError
from onnxprune.evaluation import METRICS, evaluate
from onnxprune.evaluation.choice import made
from tests.data.support import model, refused

RNG = np.random.default_rng(0)
N, C = 90, 7
X = RNG.standard_normal((N, C)).astype(np.float32)
Y = np.where(RNG.random(N) < 0.7, X.argmax(axis=1), RNG.integers(0, C, N))
SHIFT = RNG.standard_normal(C).astype(np.float32)


def scorer(batch: str = "N", shift: Any = 0.0) -> onnx.ModelProto:
    """Adds a vector to its input, so that everything it gives is known without it."""
    values = ", ".join(str(float(v)) for v in np.broadcast_to(shift, C))
    body = f"b = Constant<value = float[{C}] {{{values}}}>()\n y = Add(x, b)"
    return model(f"float[{batch},{C}] x", outputs=f"float[{batch},{C}] y", body=body)


MODEL, ORIGINAL = scorer(shift=SHIFT), scorer()


def data(**options: Any) -> Any:
    return open_data({"x": X, "labels": Y}, MODEL, **options)


def test_a_single_model_is_evaluated_by_labels() -> None:
    result = evaluate(MODEL, data())
    assert [s.metric for s in result.scores] == ["top1", "top5"] and result.samples == N
    assert result["top1"].model.value == pytest.approx(np.mean((X + SHIFT).argmax(axis=1) == Y))
    assert result["top1"].original is None and result["top1"].share
    with refused("OP711", "'mse' wasn't measured.*top1, top5"):
        result["mse"]


def test_a_label_beyond_the_classes_is_found_in_its_file(tmp_path: Path) -> None:
    labels = Y.copy()
    labels[57] = C
    np.savez(tmp_path / "data.npz", x=X, labels=labels)
    with refused("OP708", f"label {C} is beyond the model's {C} classes.*data.npz, sample 57.*ignore={C}"):
        evaluate(MODEL, open_data(tmp_path / "data.npz", MODEL, limit=N - 1, seed=3))


def test_against_its_original_a_model_is_compared_on_the_same_samples() -> None:
    result = evaluate(MODEL, data(), against=ORIGINAL)
    assert [s.metric for s in result.scores] == ["top1", "top5", "agreement", "kl", "mse", "cosine"]
    mine, its = (X + SHIFT).argmax(axis=1), X.argmax(axis=1)
    top1 = result["top1"]
    assert top1.original is not None and top1.difference is not None
    assert top1.original.value == pytest.approx(np.mean(its == Y))
    assert top1.difference.value == pytest.approx(np.mean(mine == Y) - np.mean(its == Y))
    assert top1.difference.low < top1.difference.value < top1.difference.high
    assert result["agreement"].model.value == pytest.approx(np.mean(mine == its))
    assert result["mse"].model.value == pytest.approx(np.mean(SHIFT**2), rel=1e-5)
    assert result["mse"].model.low <= result["mse"].model.value <= result["mse"].model.high


def test_pairing_makes_a_small_change_certain() -> None:
    slightly = scorer(shift=[0.05, 0, 0, 0, 0, 0, 0])
    score = evaluate(slightly, data(), against=ORIGINAL)["top1"]
    assert score.difference is not None and score.original is not None
    unpaired = score.model.high - score.model.low
    assert score.difference.high - score.difference.low < unpaired / 2


def test_a_model_against_itself_loses_nothing() -> None:
    result = evaluate(ORIGINAL, data(), against=ORIGINAL)
    values = {s.metric: s.model.value for s in result.scores if s.original is None}
    assert values == pytest.approx({"agreement": 1, "kl": 0, "mse": 0, "cosine": 1})
    for score in result.scores:
        assert score.difference is None or score.difference.value == 0


def test_without_labels_there_is_the_original_or_nothing() -> None:
    unlabeled = open_data({"x": X}, MODEL)
    assert [s.metric for s in evaluate(MODEL, unlabeled, against=ORIGINAL).scores] == [
        "agreement",
        "kl",
        "mse",
        "cosine",
    ]
    with refused("OP711", "nothing to measure.*labels, or the original"):
        evaluate(MODEL, unlabeled)


@pytest.mark.parametrize("batch", [1, 4, 90])
@pytest.mark.parametrize("size", ["1", "4", "N"])
def test_results_do_not_depend_on_batches(size: str, batch: int) -> None:
    fixed = scorer(size, SHIFT)
    expected = evaluate(MODEL, data(), against=ORIGINAL, batch=32)
    result = evaluate(fixed, open_data({"x": X, "labels": Y}, fixed), against=ORIGINAL, batch=batch)
    swapped = evaluate(fixed, data(), against=scorer("3"), batch=batch)
    for one in (result, swapped):
        assert one.samples == N
        for mine, its in zip(one.scores, expected.scores, strict=True):
            for key, value in asdict(its.model).items():
                assert getattr(mine.model, key) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_a_seed_gives_the_same_result_and_another_one_another() -> None:
    first, again, other = (evaluate(MODEL, data(limit=50, seed=3), against=ORIGINAL, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["mse"].model.value == other["mse"].model.value and first["kl"].model != other["kl"].model


def test_confidence_widens_intervals() -> None:
    narrow, wide = (evaluate(MODEL, data(), against=ORIGINAL, confidence=c) for c in (0.5, 0.99))
    for a, b in zip(narrow.scores, wide.scores, strict=True):
        assert a.model.high - a.model.low <= b.model.high - b.model.low
    assert narrow["top1"].model.high < wide["top1"].model.high


def test_progress_is_told() -> None:
    done: list[tuple[str, int, int | None]] = []
    evaluate(MODEL, data(), batch=40, progress=lambda *at: done.append(at))
    assert done == [*(("evaluate", n, 90) for n in (40, 80, 90)), ("compute the scores", 0, None)]


def test_users_metrics_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_under_test.py").write_text("def top(outputs, labels):\n    return outputs['y'].max(axis=1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = evaluate(MODEL, data(), against=ORIGINAL, metrics=["metrics_under_test:top", "top1", "top1"])
    score = result["metrics_under_test:top"]
    assert [s.metric for s in result.scores] == ["metrics_under_test:top", "top1"]
    assert score.original is not None and score.difference is not None and not score.share
    assert score.model.value == pytest.approx((X + SHIFT).max(axis=1).mean(), rel=1e-5)
    assert score.difference.value == pytest.approx(score.model.value - X.max(axis=1).mean(), rel=1e-4)
    with refused("OP710", "AttributeError"):
        evaluate(MODEL, data(), metrics=["metrics_under_test:none"])


@pytest.mark.parametrize(
    ("metrics", "against", "labels", "reason"),
    [
        (["agreemnt"], None, Y, "no metric 'agreemnt'.*did you mean agreement"),
        (["accurate"], None, Y, "no metric 'accurate'"),
        (["accuracy"], None, Y, "it is for binary or multilabel, and the task is another: classification"),
        (["agreement"], None, Y, "agreement can't be measured: it compares with the original"),
        (["mse"], None, Y, "compares with the original"),
        (["top1"], None, None, "no labels"),
        (["miou"], None, RNG.integers(0, 3, (N, 3)), "a score for each class, in a shape that matches the labels"),
        (["top1"], None, RNG.random(N), "a score for each class"),
        ([], None, Y, "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_said(metrics: list[str], against: Any, labels: Any, reason: str) -> None:
    given = {"x": X} if labels is None else {"x": X, "labels": labels}
    with refused("OP711", reason):
        evaluate(MODEL, open_data(given, MODEL), against=against, metrics=metrics)


def test_labels_of_another_kind_do_not_hide_the_comparison() -> None:
    boxes = open_data({"x": X, "labels": RNG.random((N, 5))}, MODEL)
    assert [s.metric for s in evaluate(MODEL, boxes, against=ORIGINAL).scores] == ["agreement", "kl", "mse", "cosine"]


def test_several_outputs_are_told_apart() -> None:
    two = model(
        "float[N,7] x",
        outputs="float[N,7] y, float[N,7,1,1] z",
        body="y = Neg(x)\n a = Constant<value_ints = [2, 3]>()\n z = Unsqueeze(x, a)",
    )
    result = evaluate(two, open_data({"x": X, "labels": Y}, two), against=two, output="z")
    assert [(s.metric, s.output) for s in result.scores[-6:]] == [
        ("mse", "y"),
        ("mse", "z"),
        ("nmse", "y"),
        ("nmse", "z"),
        ("cosine", "y"),
        ("cosine", "z"),
    ]
    assert result["top1"].model.value == pytest.approx(np.mean(X.argmax(axis=1) == Y))
    with refused("OP711", "no output 'w'"):
        evaluate(two, open_data({"x": X, "labels": Y}, two), output="w")


def test_models_with_other_interfaces_are_not_compared() -> None:
    other = model(f"float[N,{C}] x", outputs=f"float[N,{C}] w", body="w = Neg(x)")
    with pytest.raises(VerificationError, match=r"OP503.*outputs are y, and the original's are w"):
        evaluate(MODEL, data(), against=other)
    flat = model(
        f"float[N,{C}] x", outputs="float[N,1] y", body="a = Constant<value_ints = [1]>()\n y = ReduceSum(x, a)"
    )
    with pytest.raises(VerificationError, match=r"OP503.*'y' has shapes \[32, 1\] and \[32, 7\]"):
        evaluate(MODEL, data(), against=flat)


def test_lost_values_are_counted_as_wrong() -> None:
    broken = model(f"float[N,{C}] x", outputs=f"float[N,{C}] y", body="y = Sqrt(x)")
    result = evaluate(broken, data(), against=ORIGINAL)
    lost = (X < 0).any(axis=1)
    assert result.not_finite == lost.sum() > 0
    assert result["top1"].model.value == pytest.approx(np.mean(~lost & (X.argmax(axis=1) == Y)))
    never = evaluate(broken, data().subset(np.flatnonzero(lost)), against=ORIGINAL)["mse"].model
    assert not isfinite(never.value) and never.low is not nan


def test_labels_that_are_shifted_are_noticed() -> None:
    shifted = open_data({"x": X, "labels": np.maximum(Y - 1, 0)}, MODEL)
    assert any("label_offset" in note and "+1" in note for note in evaluate(ORIGINAL, shifted).notes)
    mended = open_data({"x": X, "labels": Y - 1 + (Y == 0)}, MODEL, recipe=Recipe(label_offset=1))
    assert evaluate(ORIGINAL, mended).notes == () == evaluate(ORIGINAL, data()).notes


def test_dense_predictions_are_evaluated_by_iou_and_positions() -> None:
    images = RNG.standard_normal((9, 4, 5, 6)).astype(np.float32)
    masks = np.where(RNG.random((9, 5, 6)) < 0.8, images.argmax(axis=1), 255)
    proto = model("float[N,4,5,6] x")
    result = evaluate(proto, open_data({"x": images, "labels": masks}, proto, recipe=Recipe(ignore=255)))
    assert [s.metric for s in result.scores] == ["top1", "miou"]
    assert result["miou"].model.value == result["top1"].model.value == 1
    with refused("OP708", "label 255 is beyond.*ignore=255"):
        evaluate(proto, open_data({"x": images, "labels": masks}, proto))


def test_whole_samples_with_a_state() -> None:
    proto = model(
        "float[1,7] x; float[2,1,3] state",
        outputs="float[1,7] y, float[2,1,3] next",
        body="y = Neg(x)\n next = Abs(state)",
    )
    given = {
        "x": X[:5, None],
        "state": RNG.standard_normal((5, 2, 1, 3)).astype(np.float32),
        "labels": (-X[:5]).argmax(axis=1),
    }
    result = evaluate(proto, open_data(given, proto), against=proto)
    assert result.samples == 5 and result["top1"].model.value == 1 and result["mse"].model.value == 0


def test_streams_are_read_once() -> None:
    calls = 0

    def batches() -> Iterator[Any]:
        nonlocal calls
        calls += 1
        yield X[:50], Y[:50]
        yield X[50:], Y[50:]

    stream = open_data(batches, MODEL)
    opened = calls
    assert evaluate(MODEL, stream, against=ORIGINAL) == evaluate(MODEL, data(), against=ORIGINAL)
    assert calls == opened + 1


def test_providers_are_not_replaced_in_silence() -> None:
    with pytest.raises(UsageError, match="OP608"):
        evaluate(MODEL, data(), providers=["NoSuchExecutionProvider"])
    assert evaluate(MODEL, data()).providers == ("CPUExecutionProvider",)


def test_every_metric_of_the_table_can_be_made() -> None:
    compared = {"kl", "mse", "nmse", "cosine"}  # made for a batch or an output
    assert {made(name).name for name in set(METRICS) - compared} == set(METRICS) - compared
