"""Metrics of decisions, numbers, text, boxes and embeddings, against scikit-learn, scipy, pycocotools and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data import open_data
from onnxprune.evaluation import Evaluation, evaluate, ranked
from onnxprune.evaluation.text import edits, greedy, read_alphabet
from onnxprune.settings import TaskSettings
from tests.data.support import model, refused

RNG = np.random.default_rng(0)
N = 200


def measured(
    x: Any, labels: Any, against: str | None = None, body: str = "y = Identity(x)", **reading: Any
) -> Evaluation:
    """Evaluate the identity, or another body, of an input."""
    x = np.asarray(x, np.float32)
    shape = ",".join(["N", *map(str, x.shape[1:])])
    proto = model(f"float[{shape}] x", outputs=f"float[{shape}] y", body=body)
    original = None if against is None else model(f"float[{shape}] x", outputs=f"float[{shape}] y", body=against)
    given = {"x": x} if labels is None else {"x": x, "labels": labels}
    data = open_data(given, proto, reading=TaskSettings(**reading) if reading else None)
    return evaluate(proto, data, against=original)


def values(result: Evaluation) -> dict[str, float]:
    for score in result.scores:
        assert not score.model.low > score.model.value and not score.model.high < score.model.value
    return {score.metric: score.model.value for score in result.scores}


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_decisions_are_measured_as_by_scikit_learn(dtype: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.integers(-9, 10, N) / 4  # with ties, also at the threshold
    labels = (scores + 2 * RNG.standard_normal(N) > 0).astype(dtype)
    for transform, x in (("y = Identity(x)", scores), ("y = Sigmoid(x)", scores)):
        found = measured(x[:, None], labels, body=transform)
        assert found.task == "binary"
        p = scores if transform == "y = Identity(x)" else 1 / (1 + np.exp(-scores))
        expected = {
            "accuracy": metrics.accuracy_score(labels, scores > 0),
            "auc": metrics.roc_auc_score(labels, p),
            "ap": metrics.average_precision_score(labels, p),
            "f1": metrics.f1_score(labels, scores > 0),
        }
        assert values(found) == pytest.approx(expected)
    assert values(measured(-scores[:, None], labels))["auc"] == pytest.approx(1 - expected["auc"])  # the control


def test_two_scores_can_be_one_decision() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores, labels = RNG.standard_normal((N, 2)), RNG.integers(0, 2, N)
    assert measured(scores, labels).task == "classification"
    expected = metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    assert values(measured(scores, labels, task="binary"))["auc"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_several_decisions_are_averaged() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.standard_normal((N, 4)).astype(np.float32)
    labels = (scores + RNG.standard_normal((N, 4)) * [0.5, 1, 2, 4] > 0.5).astype(int)
    found = measured(scores, labels)
    assert found.task == "multilabel"
    assert values(found) == pytest.approx(
        {
            "accuracy": np.mean((scores > 0) == labels),
            "auc": metrics.roc_auc_score(labels, scores, average="macro"),
            "ap": metrics.average_precision_score(labels, scores, average="macro"),
            "f1": metrics.f1_score(labels, scores > 0, average="macro"),
        }
    )
    alone = labels.copy()
    alone[:, 2] = 0  # no positive: AUC isn't defined
    without = [0, 1, 3]
    expected = metrics.roc_auc_score(labels[:, without], scores[:, without], average="macro")
    assert values(measured(scores, alone))["auc"] == pytest.approx(expected)


@pytest.mark.parametrize("statistic", ["auc", "average_precision", "spearman"])
def test_weights_count_samples_as_often_as_they_are_drawn(statistic: str) -> None:
    x, y = RNG.integers(0, 9, 60).astype(float), RNG.integers(0, 3, 60).astype(float)
    y = y > 1 if statistic != "spearman" else y
    draws = RNG.poisson(1, (60, 5)).astype(float)
    function = getattr(ranked, statistic)
    for draw, value in zip(draws.T, function(x, y, draws), strict=True):
        repeated = [np.repeat(a, draw.astype(int)) for a in (x, y)]
        assert function(*repeated, np.ones((len(repeated[0]), 1)))[0] == pytest.approx(value)


def test_perfect_decisions_are_certain_and_shuffled_ones_are_chance() -> None:
    labels = np.arange(2000) % 2
    perfect = measured(labels[:, None] - 0.5, labels)
    assert set(values(perfect).values()) == {1.0}
    chance = measured(labels[:, None] - 0.5 + RNG.standard_normal((2000, 1)), RNG.permutation(labels))["auc"].model
    assert chance.low < 0.5 < chance.high and chance.high - chance.low < 0.1
    assert np.isnan(values(measured(RNG.standard_normal((50, 1)), np.zeros(50, int), task="binary"))["auc"])


def test_scores_that_are_not_finite_are_wrong() -> None:
    labels = np.arange(40) % 2
    found = measured(labels[:, None] * 2 - 1, labels, body="y = Sqrt(x)")  # NaN for all negatives
    assert found["auc"].model.value == 0.0 and found.not_finite == 20 and found["accuracy"].model.value == 0.5


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("width", [1, 3])
def test_numbers_are_measured_as_by_scikit_learn(width: int, offset: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    true = RNG.standard_normal((N, width)) * 10 + offset
    mine = (true + RNG.standard_normal((N, width)) * 3).astype(np.float32)
    found = measured(mine, true)
    assert found.task == "regression"
    expected = {
        "r2": metrics.r2_score(true, mine),
        "mae": metrics.mean_absolute_error(true, mine),
        "rmse": np.sqrt(metrics.mean_squared_error(true, mine)),
    }
    assert values(found) == pytest.approx(expected, rel=1e-9)
    again = measured(true.astype(np.float32), true.astype(np.float32))
    assert values(again) == {"r2": 1, "mae": 0, "rmse": 0}
    assert values(measured(mine, RNG.permutation(true)))["r2"] < 0  # the control


def test_without_labels_numbers_are_compared_relative_to_their_variance() -> None:
    x = RNG.standard_normal((N, 1)).astype(np.float32)
    found = measured(x, None, against="y = Neg(x)")
    assert found.task == "regression"
    assert found["nmse"].model.value == pytest.approx(4 * np.mean(x**2) / np.var(x), rel=1e-5)


def test_text_is_decoded_and_compared_by_hand() -> None:
    alphabet = ["-", "a", "b", "c", " "]
    ids = [[1, 1, 0, 1, 4, 2, 2, 3], [2, 0, 0, 2, 4, 3, 3, 3]]
    scores = np.eye(5, dtype=np.float32)[ids]
    assert greedy(scores, 0) == [[1, 1, 4, 2, 3], [2, 2, 4, 3]]
    found = measured(scores, np.array(["aa bc", "ba c"]), alphabet=alphabet)
    assert found.task == "ctc" and values(found) == {"wer": 1 / 4, "cer": 1 / 9}
    by_ids = measured(scores, np.array([[1, 1, 4, 2, 3], [2, 1, 4, 3, -1]]), task="ctc")
    assert values(by_ids) == {"cer": 1 / 9}
    assert values(measured(scores, np.array(["aa bc", "bb c"]), alphabet=alphabet)) == {"wer": 0, "cer": 0}
    last = measured(np.roll(scores, -1, axis=2), np.array([[0, 0, 3, 1, 2], [1, 1, 3, 2, -1]]), task="ctc", blank=-1)
    assert values(last) == {"cer": 0}
    with refused("OP711", "alphabet has 4 symbols, and the output has 5"):
        measured(scores, np.array(["a", "b"]), alphabet=alphabet[:4])
    with refused("OP711", "text, which needs the model's alphabet"):
        measured(scores, np.array(["a", "b"]), task="ctc")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)],
)
def test_edits_by_hand(a: str, b: str, distance: int) -> None:
    assert edits(a, b) == edits(b, a) == distance


def test_an_alphabet_is_a_line_for_each_class(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_bytes("<blank>\r\nä\n\nb\n".encode())
    assert read_alphabet(tmp_path / "a.txt") == ("<blank>", "ä", " ", "b")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\n")
    for name in ("bad.txt", "none.txt"):
        with refused("OP710", "can't read the alphabet"):
            read_alphabet(tmp_path / name)


def test_masks_of_two_classes_have_one_score() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.standard_normal((9, 1, 6, 7)).astype(np.float32)
    masks = (scores[:, 0] + RNG.standard_normal((9, 6, 7)) > 0).astype(int)
    found = measured(scores, masks)
    expected = metrics.jaccard_score(masks.ravel(), scores.ravel() > 0, average="macro")
    assert found.task == "segmentation" and found["miou"].model.value == pytest.approx(expected)
    dense = RNG.standard_normal((9, 3, 6, 7)).astype(np.float32)
    unlabeled = measured(dense, None, against="y = Identity(x)", task="segmentation")
    assert unlabeled["miou_original"].model.value == 1
    other = measured(dense, None, against="y = Neg(x)", task="segmentation")["miou_original"].model.value
    by_hand = metrics.jaccard_score((-dense).argmax(1).ravel(), dense.argmax(1).ravel(), average="macro")
    assert other == pytest.approx(by_hand)


def test_embeddings_are_judged_by_their_neighbors() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs the dev extra: scikit-learn")
    labels = np.arange(90) % 6
    vectors = np.eye(8)[labels] + 0.7 * RNG.standard_normal((90, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = measured(vectors, labels, against="y = Neg(x)")
    assert found.task == "embedding"
    near = neighbors.NearestNeighbors(n_neighbors=6, metric="cosine").fit(vectors).kneighbors(vectors)[1][:, 1:]
    hits = labels[near] == labels[:, None]
    assert found["recall1"].model.value == pytest.approx(hits[:, 0].mean()) != 1
    assert found["recall5"].model.value == pytest.approx(hits.any(axis=1).mean())
    assert found["neighbors"].model.value == 1  # the negated vectors have the same neighbors
    chance = measured(vectors, RNG.permutation(labels))["recall1"].model
    assert chance.low < 14 / 89 < chance.high
    once = measured(vectors, np.arange(90))["recall1"].model  # nobody has a sample of the same class
    assert np.isnan(once.value)


def test_pairs_of_embeddings_correlate_by_rank() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs the dev extra: scipy")
    vectors = RNG.standard_normal((80, 8)).astype(np.float32)
    order = RNG.permutation(80)
    pairs = order.reshape(40, 2)
    a, b = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    given = np.round(cosines * 3 + RNG.standard_normal(40)) / 2  # with ties
    labels = np.zeros((80, 2))
    for number, pair in enumerate(pairs):
        labels[pair] = number, given[number]
    found = values(measured(vectors, labels, task="embedding"))
    assert found == {"spearman": pytest.approx(stats.spearmanr(cosines, given).statistic, rel=1e-4)}
