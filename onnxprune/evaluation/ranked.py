"""Statistics that don't add up over samples: of ranks, and of nearest neighbors.

Each takes all samples and a weight for each of them, [samples, draws], and gives a value for each draw. So one pass
over the sorted samples computes a statistic and its bootstrap values, in which a weight is the number of times that a
sample was drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluation.intervals import Floats

_CHUNK = 1 << 22  # elements of a matrix that are computed at once


def _ties(ordered: Floats) -> NDArray[np.int64]:
    """Return where each run of equal values ends, exclusively."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))


def auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the area under the ROC curve; NaN where a draw has only one class.

    It is the probability that a positive scores higher than a negative, ties counting half: J. A. Hanley and B. J.
    McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve", Radiology 143
    (1982); scikit-learn's `roc_auc_score` with sample weights.

    Args:
        scores: [samples].
        positive: [samples].
        weights: [samples, draws].
    """
    order = np.argsort(scores, kind="stable")
    ends = _ties(scores[order])
    up, down = (_sums(weights[order] * chosen[order, None], ends) for chosen in (positive, ~positive))
    below = np.cumsum(down, axis=0) - down
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = (up * (below + down / 2)).sum(axis=0) / (up.sum(axis=0) * down.sum(axis=0))
    return value


def average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the mean of precision over recall, without interpolation; NaN where a draw has no positive.

    M. Zhu, "Recall, precision and average precision" (2004); scikit-learn's `average_precision_score` with sample
    weights. Arguments are those of `auc`.
    """
    order = np.argsort(-scores, kind="stable")
    ends = _ties(scores[order])
    gained = _sums(weights[order] * positive[order, None], ends)
    found, listed = np.cumsum(gained, axis=0), np.cumsum(_sums(weights[order], ends), axis=0)
    precision = np.divide(found, listed, out=np.zeros_like(found), where=listed > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = (gained * precision).sum(axis=0) / found[-1]
    return value


def spearman(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Return the correlation of ranks, equal values having the mean of their ranks; NaN where one doesn't vary.

    C. Spearman, "The proof and measurement of association between two things", Am. J. Psychol. 15 (1904);
    scipy.stats.spearmanr.

    Args:
        a: [samples].
        b: [samples].
        weights: [samples, draws].
    """
    x, y = (_ranks(values, weights) for values in (a, b))
    total = weights.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (r - (weights * r).sum(axis=0) / total for r in (x, y))
        value: Floats = (weights * x * y).sum(axis=0)
        value = value / np.sqrt((weights * x * x).sum(axis=0) * (weights * y * y).sum(axis=0))
    return value


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Return the mean rank of each value among the samples drawn, [samples, draws]."""
    order = np.argsort(values, kind="stable")
    ends = _ties(values[order])
    sums = _sums(weights[order], ends)
    means = np.cumsum(sums, axis=0) - sums / 2
    ranks = np.empty_like(weights)
    ranks[order] = np.repeat(means, np.diff(ends, prepend=0), axis=0)
    return ranks


def _sums(rows: Floats, ends: NDArray[np.int64]) -> Floats:
    """Sum rows within runs that end at given places."""
    result: Floats = np.add.reduceat(rows, np.append(0, ends[:-1]), axis=0)
    return result


def nearest(vectors: Floats, k: int) -> NDArray[np.int64]:
    """Return the k nearest other samples of each by cosine, nearest first; ties go to the first sample.

    Args:
        vectors: [samples, width]; those that aren't finite are nobody's neighbors.
        k: at most the number of other samples.

    Returns:
        Indices, [samples, k]; -1 for samples that aren't finite.
    """
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    known = np.zeros_like(vectors)
    known[finite] = vectors[finite]
    unit = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    found = np.empty((len(unit), k), np.int64)
    rows = max(1, _CHUNK // len(unit))
    for start in range(0, len(unit), rows):
        near = unit[start : start + rows] @ unit.T
        near[:, ~finite] = -np.inf
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        found[start : start + rows] = np.argsort(-near, axis=1, kind="stable")[:, :k]
    found[~finite] = -1
    return found


def pair_cosine(a: Floats, b: Floats) -> Floats:
    """Return the cosine of each row of one matrix with the same row of another; 0 for a row of zeros."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products = (a * b).sum(axis=-1)
    result: Floats = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return result
