"""Metrics of decisions, numbers, text, boxes and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnxprune.data.batch import IGNORED, Array
from onnxprune.evaluation import matching, ranked
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.text import edits
from onnxprune.evaluation.view import BatchView

Ranked = Callable[[Floats, Any, Floats], Floats]

_ELEMENTS = 1 << 22  # of an array that is computed at once
_SEPARATE = 64  # most numbers of a sample whose R2 is computed one by one
_DRAWS = 200  # most bootstrap values of mAP, which takes long


def kept_decisions(view: BatchView) -> list[Floats]:
    """Return the scores and the labels of each sample, [2, labels]; scores that aren't finite count as wrong."""
    assert view.classes is not None and view.classes.scores is not None and view.flat is not None
    scores = (view.classes.scores[:, 1] - view.classes.scores[:, 0]).astype(np.float64)
    scores = np.where(np.isnan(scores), np.where(view.flat == 1, -np.inf, np.inf), scores)
    return list(np.stack([scores, view.flat], axis=1))


def macro(statistic: Ranked, kept: Sequence[Any], weights: Floats) -> Floats:
    """Return the mean over labels of a statistic of scores; labels for which it isn't defined don't count.

    The macro average, as scikit-learn's `average="macro"`.
    """
    scores, labels = np.moveaxis(np.stack(kept), 1, 0)
    values = []
    for own, true in zip(scores.T, labels.T, strict=True):
        known = true != IGNORED
        values.append(_in_parts(partial(statistic, own[known], true[known] == 1), weights[known]))
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _in_parts(statistic: Callable[[Floats], Floats], weights: Floats) -> Floats:
    """Apply a statistic to some draws after others, in bounded memory."""
    if not len(weights):
        return np.full(weights.shape[1], np.nan)
    step = max(1, _ELEMENTS // len(weights))
    return np.concatenate([statistic(weights[:, i : i + step]) for i in range(0, weights.shape[1], step)])


def f1_rows(view: BatchView) -> Floats:
    """Return right positives, wrong positives and missed positives for each label, [n, 3 * labels]."""
    assert view.classes is not None and view.flat is not None
    mine, true = view.classes.predicted, view.flat
    counts = [(mine == 1) & (true == 1), (mine == 1) & (true == 0), (mine != 1) & (true == 1)]
    return np.concatenate(counts, axis=1).astype(np.float64)


def f1_value(sums: Floats) -> Floats:
    """Return the mean of F1 over the labels that occur: 2 TP / (2 TP + FP + FN).

    C. J. van Rijsbergen, "Information retrieval" (1979); scikit-learn's `f1_score`, macro average over several labels.
    """
    right, wrong, missed = np.split(sums, 3, axis=-1)
    total = 2 * right + wrong + missed
    values = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    with np.errstate(invalid="ignore"):
        mean: Floats = values.sum(axis=-1) / (total > 0).sum(axis=-1)
    return mean


def _numbers(view: BatchView) -> tuple[Floats, Floats]:
    """Return the output and the labels, [n, numbers]."""
    assert view.value is not None and view.labels is not None
    mine, true = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (view.value, view.labels))
    return mine, true


def error_rows(power: int, view: BatchView) -> Floats:
    """Return the sum of a power of the absolute errors of each sample, and their number, without samples not finite."""
    mine, true = _numbers(view)
    sums = (np.abs(mine - true) ** power).sum(axis=1)
    finite = np.isfinite(sums)
    return np.stack([np.where(finite, sums, 0), finite * mine.shape[1]], axis=1)


class R2:
    """The coefficient of determination: 1 minus the squared error relative to the squared deviation from the mean.

    scikit-learn's `r2_score`: the mean over a sample's numbers, if there are few. The numbers of larger outputs, such
    as images, are taken together.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self._shift: Floats | None = None  # close to the mean, so that its square can be subtracted

    def rows(self, view: BatchView) -> Floats:
        """Return squared errors, targets, their squares and their count, [n, 4 * numbers]."""
        mine, true = _numbers(view)
        if self._shift is None:
            self._shift = true[:1]
        errors, shifted = (mine - true) ** 2, true - self._shift
        parts = np.stack([errors, shifted, shifted**2, np.ones_like(errors)], axis=1)
        parts[~np.isfinite(parts).all(axis=(1, 2))] = 0
        if parts.shape[2] > _SEPARATE:
            parts = parts.sum(axis=2, keepdims=True)
        return parts.reshape(len(parts), -1)

    @staticmethod
    def value(sums: Floats) -> Floats:
        """Compute R2 along the last axis of sums; NaN where targets don't vary."""
        errors, total, squares, count = np.split(sums, 4, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = squares - total**2 / count
            values = np.where(spread > 1e-12 * squares, 1 - errors / spread, np.nan)
            known = np.isfinite(values)
            mean: Floats = np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
        return mean


def text_rows(words: bool, original: bool, view: BatchView) -> Floats:
    """Return the edits that make the text of each sample of its reference, and the reference's length.

    Their ratio is the word or character error rate, as of NIST's SCLITE; words are what white space separates. Without
    an alphabet, an id counts as a character.
    """
    mine = view.texts()
    true = view.original.texts() if original and view.original is not None else view.references()
    if words:
        mine, true = ([text.split() for text in texts] for texts in (mine, true))
    return np.array([[edits(a, b), len(b)] for a, b in zip(mine, true, strict=True)], np.float64)


def kept_boxes(original: bool, view: BatchView) -> list[tuple[Floats, Floats]]:
    """Return the boxes found and the true ones of each sample; of an original, those it is sure of are true."""
    assert view.boxes is not None
    if not original:
        return list(zip(view.boxes, view.truth, strict=True))
    assert view.original is not None and view.original.boxes is not None
    return list(zip(view.boxes, matching.as_truth(view.original.boxes), strict=True))


def matched_boxes(view: BatchView) -> Floats:
    """Return how many boxes of both models match, and how many they are sure of, for each sample."""
    assert view.boxes is not None and view.original is not None and view.original.boxes is not None
    return np.array([matching.matched(a, b) for a, b in zip(view.boxes, view.original.boxes, strict=True)], np.float64)


class MeanAveragePrecision:
    """Mean average precision of boxes, see `matching.coco_matches` and `matching.voc_matches`."""

    def __init__(self, kind: str) -> None:
        """Take "coco", "coco50" or "voc"."""
        self.kind = kind

    def __call__(self, kept: Sequence[Any], weights: Floats) -> Floats:
        """Compute it for weights of samples."""
        found, truth = ([pair[i] for pair in kept] for i in (0, 1))
        weights = weights[:, :_DRAWS]
        if self.kind == "voc":
            return matching.mean_average_precision(matching.voc_matches(found, truth), weights, None)
        matches = matching.coco_matches(found, truth)
        if self.kind == "coco50":
            matches = [matching.Matches(m.image, m.right[:1], m.counted[:1], m.truth) for m in matches]
        return matching.mean_average_precision(matches, weights)


def kept_vectors(view: BatchView) -> list[tuple[Array, Any]]:
    """Return the embedding of each sample, and its label or the original's embedding."""
    assert view.value is not None
    vectors = view.value.reshape(view.count, -1).astype(np.float32)
    if view.labels is not None and view.labels.ndim <= 2:
        return list(zip(vectors, view.labels, strict=True))
    return [(vector, None) for vector in vectors]


def kept_both(view: BatchView) -> list[tuple[Array, Array]]:
    """Return the embedding of each sample by both models."""
    assert view.value is not None and view.original is not None and view.original.value is not None
    mine, its = (v.reshape(view.count, -1).astype(np.float32) for v in (view.value, view.original.value))
    return list(zip(mine, its, strict=True))


def recall_rows(k: int, kept: Sequence[Any]) -> Floats:
    """Return for each sample whether one of its k nearest others has its label, and whether any other has it.

    Recall@k of H. Jégou, M. Douze and C. Schmid, "Product quantization for nearest neighbor search", PAMI 33 (2011), as
    metric learning uses it: H. O. Song et al., CVPR 2016.
    """
    vectors, labels = np.stack([v for v, _ in kept]), np.array([label for _, label in kept]).reshape(-1)
    if len(labels) < 2:
        return np.zeros((len(labels), 2))
    found = ranked.nearest(vectors, min(k, len(labels) - 1))
    hits = ((labels[found] == labels[:, None]) & (found >= 0)).any(axis=1)
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    counted = (counts[which] > 1) & (labels != IGNORED)
    return np.stack([hits & counted, counted], axis=1).astype(np.float64)


def neighbor_rows(kept: Sequence[Any]) -> Floats:
    """Return for each sample whether both models give it the same nearest other sample."""
    if len(kept) < 2:
        return np.zeros((len(kept), 2))
    mine, its = (ranked.nearest(np.stack([pair[i] for pair in kept]), 1)[:, 0] for i in (0, 1))
    return np.stack([mine == its, its >= 0], axis=1).astype(np.float64)


def sts(kept: Sequence[Any], weights: Floats) -> Floats:
    """Return the Spearman correlation between cosines of pairs of samples and the similarities given.

    The measure of semantic textual similarity: D. Cer et al., "SemEval-2017 task 1", section 4; N. Reimers and I.
    Gurevych, "Sentence-BERT" (2019). Labels are [n, 2]: the number of the pair, and its similarity. A pair is drawn as
    often as its first sample.
    """
    rows: dict[float, list[int]] = {}
    for i, (_, label) in enumerate(kept):
        rows.setdefault(float(label[0]), []).append(i)
    pairs = np.array([members for members in rows.values() if len(members) == 2], np.int64).reshape(-1, 2)
    if not len(pairs):
        return np.full(weights.shape[1], np.nan)
    first, second = (np.stack([kept[i][0] for i in side]).astype(np.float64) for side in pairs.T)
    given = np.array([float(kept[i][1][1]) for i in pairs[:, 0]])
    return _in_parts(partial(ranked.spearman, ranked.pair_cosine(first, second), given), weights[pairs[:, 0]])
