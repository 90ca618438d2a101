"""Every metric against loops written for the test, or against scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data import IGNORED
from onnxprune.data.batch import Batch
from onnxprune.evaluation.choice import made
from onnxprune.evaluation.classes import class_output, classes_of
from onnxprune.evaluation.metrics import Metric, distance, kl, user_metric
from onnxprune.evaluation.tasks import Task
from onnxprune.evaluation.view import BatchView, view
from tests.data.support import refused

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((60, 8)).astype(np.float32)
LOGITS, PROBABILITIES = kl(SCORES), kl(np.eye(8)[:1])
MSE, COSINE = distance("mse", "o", False), distance("cosine", "o", False)
OTHER = (SCORES + RNG.standard_normal((60, 8))).astype(np.float32)
LABELS = np.where(RNG.random(60) < 0.4, SCORES.argmax(axis=1), RNG.integers(0, 8, 60))


def seen(output: NDArray[Any], labels: NDArray[Any] | None = None, original: NDArray[Any] | None = None) -> BatchView:
    task, batch = Task("classification", "o", "the test"), Batch({"o": output}, labels)
    reference = None if original is None else view(task, {"o": original}, batch, str)
    return view(task, {"o": output}, batch, str, reference)


def value(metric: Metric, *given: Any) -> float:
    """The metric of all samples, which must be that of three batches too."""
    whole: Any = metric.value(metric.rows(seen(*given)).sum(axis=0))
    parts: list[list[Any]] = [[None if g is None else g[a:b] for g in given] for a, b in ((0, 1), (1, 40), (40, None))]
    sums: Any = np.sum([metric.rows(seen(*part)).sum(axis=0) for part in parts], axis=0)
    np.testing.assert_allclose(metric.value(sums), whole)
    return float(whole)


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    expected = sklearn.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(8))
    assert value(made(f"top{k}"), SCORES, LABELS) == pytest.approx(expected)
    assert value(made(f"top{k}"), -SCORES, LABELS) != pytest.approx(expected)  # the control


@pytest.mark.parametrize("shape", [(60, 8, 1, 1), (60, 1, 1, 8), (60, 1, 8)])
def test_single_axes_do_not_matter(shape: tuple[int, ...]) -> None:
    assert value(made(f"top{1}"), SCORES.reshape(shape), LABELS[:, None]) == value(made(f"top{1}"), SCORES, LABELS)


def test_of_equal_scores_the_first_wins() -> None:
    flat = np.zeros((60, 8), np.float32)
    assert value(made(f"top{1}"), flat, np.zeros(60, int)) == 1 and value(made(f"top{1}"), flat, np.ones(60, int)) == 0
    assert value(made(f"top{5}"), flat, np.full(60, 4)) == 1 and value(made(f"top{5}"), flat, np.full(60, 5)) == 0


def test_ignored_labels_do_not_count_and_nan_is_never_right() -> None:
    labels = np.where(np.arange(60) < 20, IGNORED, LABELS)
    expected = np.mean(SCORES[20:].argmax(axis=1) == LABELS[20:])
    assert value(made(f"top{1}"), SCORES, labels) == pytest.approx(expected)
    broken = SCORES.copy()
    broken[:, 3] = np.nan
    assert value(made(f"top{1}"), broken, LABELS) == value(made(f"top{5}"), broken, LABELS) == 0


DENSE = RNG.standard_normal((60, 5, 6, 7)).astype(np.float32)
MASKS = np.where(RNG.random((60, 6, 7)) < 0.1, IGNORED, DENSE.argmax(axis=1))
MASKS = np.where(RNG.random((60, 6, 7)) < 0.3, RNG.integers(0, 4, (60, 6, 7)), MASKS)


@pytest.mark.parametrize("form", ["NCHW", "NHWC", "ids"])
def test_mean_iou_is_scikit_learns(form: str) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    predicted, counted = DENSE.argmax(axis=1), MASKS != IGNORED
    expected = sklearn.jaccard_score(MASKS[counted], predicted[counted], average="macro")
    output = {"NCHW": DENSE, "NHWC": DENSE.transpose(0, 2, 3, 1), "ids": predicted}[form]
    assert value(made("miou"), output, MASKS) == pytest.approx(expected)
    assert value(made("miou"), np.roll(output, 1, axis=0), MASKS) < expected / 2  # the control
    assert value(made(f"top{1}"), output, MASKS) == pytest.approx(np.mean((predicted == MASKS)[counted]))


def test_models_that_give_indices_need_not_tell_how_many_there_are() -> None:
    labels = np.array([0, 999] * 30)
    predicted = np.where(np.arange(60) < 15, -7, labels)
    assert value(made(f"top{1}"), predicted, labels) == 0.75
    with refused("OP711", "below 256"):
        value(made("miou"), predicted, labels)


def test_classes_that_never_occur_have_no_iou() -> None:
    labels = np.array([0, 0, 1, 1] * 15)
    scores = np.eye(8, dtype=np.float32)[np.array([0, 1, 1, 1] * 15)]
    assert value(made("miou"), scores, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_agreement_counts_equal_predictions() -> None:
    expected = np.mean([a.argmax() == b.argmax() for a, b in zip(SCORES, OTHER, strict=True)])
    assert 0.2 < expected < 0.9
    assert value(made("agreement"), SCORES, None, OTHER) == pytest.approx(expected)
    assert value(made("agreement"), SCORES, None, SCORES) == 1


def test_kl_is_scipys_entropy() -> None:
    special = pytest.importorskip("scipy.special", reason="needs the dev extra: scipy")
    stats = pytest.importorskip("scipy.stats", reason="needs the dev extra: scipy")
    p, q = special.softmax(OTHER.astype(float), axis=1), special.softmax(SCORES.astype(float), axis=1)
    expected = stats.entropy(p, q, axis=1).mean()
    assert value(LOGITS, SCORES, None, OTHER) == pytest.approx(expected, rel=1e-6)
    assert value(PROBABILITIES, q, None, p) == pytest.approx(expected, rel=1e-6)
    assert value(LOGITS, OTHER, None, SCORES) != pytest.approx(expected, rel=1e-3)  # not symmetric
    one_hot = np.eye(8)[LABELS]
    assert 0 < value(PROBABILITIES, np.roll(one_hot, 1, axis=1), None, one_hot) < 100


def test_kl_of_positions_is_their_mean() -> None:
    labels = MASKS
    by_hand = value(
        LOGITS, DENSE.transpose(0, 2, 3, 1).reshape(-1, 5), None, -DENSE.transpose(0, 2, 3, 1).reshape(-1, 5)
    )
    assert value(LOGITS, DENSE, labels, -DENSE) == pytest.approx(by_hand)


def test_distances_by_hand() -> None:
    expected = np.mean(
        [((a - b) ** 2).sum() / 8 for a, b in zip(SCORES.astype(float), OTHER.astype(float), strict=True)]
    )
    assert value(MSE, SCORES, None, OTHER) == pytest.approx(expected)
    angles = [
        a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(SCORES.astype(float), OTHER.astype(float), strict=True)
    ]
    assert value(COSINE, SCORES, None, OTHER) == pytest.approx(np.mean(angles))
    zero = np.zeros_like(SCORES)
    assert value(COSINE, zero, None, zero) == 1 and value(COSINE, zero, None, SCORES) == 0


def test_samples_that_are_not_finite_are_left_out_of_means_and_counted() -> None:
    broken = SCORES.copy()
    broken[[3, 9], 2] = np.nan, np.inf
    sound = np.delete(np.arange(60), [3, 9])
    for metric in (MSE, COSINE, LOGITS):
        assert value(metric, broken, None, OTHER) == pytest.approx(value(metric, SCORES[sound], None, OTHER[sound]))
    assert seen(broken, None, OTHER).not_finite() == 2
    assert seen(broken, None, broken).not_finite() == 0


def test_a_users_metric_gives_a_number_for_each_sample_or_for_the_batch() -> None:
    def error(outputs: dict[str, Any], labels: Any) -> Any:
        return outputs["o"].argmax(axis=1) != labels

    expected = np.mean(SCORES.argmax(axis=1) != LABELS)
    assert value(user_metric("m:f", error), SCORES, LABELS) == pytest.approx(expected)
    assert value(user_metric("m:f", lambda o, y: error(o, y).mean()), SCORES, LABELS) == pytest.approx(expected)
    for wrong, reason in ((lambda o, y: [1, 2], r"returned shape \[2\]"), (lambda o, y: np.nan, "aren't finite")):
        with refused("OP710", f"{reason}.*m:f"):
            value(user_metric("m:f", wrong), SCORES, LABELS)
    with refused("OP710", "KeyError.*m:f"):
        value(user_metric("m:f", lambda o, y: o["none"]), SCORES, LABELS)
    with refused("OP710", "ValueError"):
        value(user_metric("m:f", lambda o, y: "high"), SCORES, LABELS)


def test_labels_beyond_the_classes_are_refused_by_sample() -> None:
    labels = LABELS.copy()
    labels[17] = 8
    with refused("OP708", "label 8 is beyond the model's 8 classes.*sample 17.*ignore=8"):
        view(Task("classification", "o", ""), {"o": SCORES}, Batch({"o": SCORES}, labels), "sample {}".format)


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((4, 5), (4,), 1),
        ((4, 5, 6, 7), (4, 6, 7), 1),
        ((4, 6, 7, 5), (4, 6, 7), 3),
        ((4, 9, 5), (4, 9), 2),
        ((4, 5, 5, 5), (4, 5, 5), 1),
        ((4, 5, 6), (4,), None),
        ((4, 1), (4,), None),
        ((4,), (4,), None),
    ],
)
def test_where_the_classes_are(shape: tuple[int, ...], labels: tuple[int, ...], axis: int | None) -> None:
    output = RNG.standard_normal(shape).astype(np.float16)
    classes = classes_of(output, np.zeros(labels, int))
    if axis is None:
        assert classes is None
    else:
        assert classes is not None and classes.count == shape[axis]
        np.testing.assert_array_equal(classes.predicted, output.argmax(axis=axis).reshape(4, -1))


def test_the_output_that_tells_classes() -> None:
    ids, boxes = SCORES.argmax(axis=1), RNG.standard_normal((60, 9, 4)).astype(np.float32)
    assert class_output({"ids": ids, "scores": SCORES}, LABELS, None) == "scores"
    assert class_output({"ids": ids}, LABELS, None) == "ids"
    assert class_output({"boxes": boxes, "scores": SCORES}, None, None) == "scores"
    assert class_output({"aux": OTHER, "scores": SCORES}, LABELS, None) == "aux"
    assert class_output({"age": SCORES[:, :3], "scores": SCORES}, LABELS, None) is None  # which one?
    assert class_output({"age": SCORES[:, :3], "scores": SCORES}, LABELS, "scores") == "scores"
