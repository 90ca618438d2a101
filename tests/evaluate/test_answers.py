"""Doubts about data: shifted labels, and what a constant answer would reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data import open_data
from onnxprune.evaluation import evaluate
from tests.data.support import model

RNG = np.random.default_rng(0)
N = 200
X = RNG.standard_normal((N, 4)).astype(np.float32)
Y = np.where(RNG.random(N) < 0.9, X.argmax(axis=1), (X.argmax(axis=1) + 1) % 4)
NET = model("float[N,4] x", outputs="float[N,4] y", body="y = Identity(x)")
SHIFT = np.array([0, 1, 0, 0], np.float32)


def shifted(by: int) -> Any:
    body = f"a = Constant<value=float[4] {{0, {by}, 0, 0}}>()\n y = Add(x, a)"
    return model("float[N,4] x", outputs="float[N,4] y", body=body)


OTHER = shifted(1)


def test_good_data_raise_no_doubts() -> None:
    found = evaluate(NET, open_data({"x": X, "labels": Y}, NET))
    assert found.doubts == () and found.notes == ()
    assert found["top1"].constant == pytest.approx(np.bincount(Y).max() / N)


def test_what_becomes_wrong_is_counted() -> None:
    """Of the samples that the original gets right, those that the model gets wrong; gains don't make up for them."""
    its, mine = X.argmax(axis=1), (X + SHIFT).argmax(axis=1)
    score = evaluate(OTHER, open_data({"x": X, "labels": Y}, NET), against=NET)["top1"]
    right = its == Y
    assert score.lost is not None
    assert score.lost.value == pytest.approx((mine != Y)[right].mean()) and score.lost.value > 0.1
    assert score.lost.low < score.lost.value < score.lost.high


def test_without_labels_the_answers_of_the_original_count() -> None:
    found = evaluate(OTHER, open_data({"x": X}, NET), against=NET)
    assert found["agreement"].constant == pytest.approx(np.bincount(X.argmax(axis=1)).max() / N)
    assert found["agreement"].lost is None and found.doubts == ()


@pytest.mark.parametrize("against", [None, NET])
def test_shifted_labels(against: Any) -> None:
    shift = np.where(X.argmax(axis=1) < 3, X.argmax(axis=1) + 1, 0)
    found = evaluate(NET, open_data({"x": X, "labels": shift}, NET), against=against)
    assert "labels look shifted: adding -1" in found.doubts[0] and found.doubts[0] in found.notes
    assert len(found.doubts) == 2 and (f"the {'original' if against else 'model'} is no better" in found.doubts[1])


def test_an_original_that_sees_nothing() -> None:
    """With inputs in the wrong scale, or no information in them, one class is all that comes out."""
    blind = shifted(9)
    data = open_data({"x": X / 100, "labels": Y}, NET)
    (doubt,) = evaluate(blind, data).doubts
    assert "a constant answer" in doubt
    (doubt,) = evaluate(NET, open_data({"x": X / 100}, NET), against=blind).doubts  # no labels: 0 of variety
    assert "agreement" in doubt
    assert evaluate(NET, data, against=blind).doubts and not evaluate(blind, data, against=NET).doubts


def test_each_decision_has_a_constant_answer_of_its_own() -> None:
    labels = (RNG.random((N, 4)) < [0.1, 0.9, 0.5, 0.3]).astype(np.int64)
    labels[0] = [0, 1, 0, 0]
    found = evaluate(NET, open_data({"x": X, "labels": labels}, NET))
    share = labels.mean(axis=0)
    assert found["accuracy"].constant == pytest.approx(np.maximum(share, 1 - share).mean())
    assert found["auc"].constant == 0.5
