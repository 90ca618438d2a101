"""The metrics. Each makes rows of numbers that add up over samples, and a value of the sums.

Because rows add up, a metric is computed in one pass, in memory that doesn't grow with the data, and so are its
resampled values for an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array
from onnxprune.data.functions import guarded
from onnxprune.errors import DataError
from onnxprune.evaluation.classes import Ids
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.views import BatchView

PerSample = Callable[[BatchView], Floats]

_INDICES = 256  # classes of which sums are kept where the model doesn't tell how many there are


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: what users call it.
        rows: numbers [rows, columns] that add up over batches; a row for each sample, or one for the batch.
        value: computes the metric along the last axis of sums.
        output: the output that it is about, if it is about one of several.
        share: whether it is a share of samples or positions.
        paired: whether it is measured of the original too; others compare with it.
    """

    name: str
    rows: PerSample
    value: Callable[[Floats], Floats]
    output: str | None = None
    share: bool = False
    paired: bool = False


def top_k(k: int) -> Metric:
    """Count the labels among the k highest scores; of equal ones, the first counts as higher."""
    return Metric(f"top{k}", partial(_top_k_rows, k), _mean, share=True, paired=True)


def mean_iou() -> Metric:
    """Average intersection over union of the classes that occur in labels or predictions, over all positions."""
    return Metric("miou", _iou_rows, _mean_iou, share=True, paired=True)


def agreement() -> Metric:
    """Count the predictions that are the original's."""
    return Metric("agreement", _agreement_rows, _mean, share=True)


def kl(probabilities: bool) -> Metric:
    """Average the Kullback-Leibler divergence from the original's distribution of classes to the model's, in nats.

    Args:
        probabilities: whether the output is a distribution; else its softmax is taken.
    """
    return Metric("kl", partial(_kl_rows, probabilities), _mean)


def mse(output: str, named: bool) -> Metric:
    """Average the squared difference from the original's output.

    Args:
        output: the output.
        named: whether there are others.
    """
    return Metric("mse", partial(_distance_rows, _squared, output), _mean, output if named else None)


def cosine(output: str, named: bool) -> Metric:
    """Average the cosine of the angle between a sample's output and the original's.

    Args:
        output: the output.
        named: whether there are others.
    """
    return Metric("cosine", partial(_distance_rows, _cosine, output), _mean, output if named else None)


def user_metric(name: str, function: Callable[..., Any]) -> Metric:
    """Average what a user's function gives for (outputs, labels): a number for each sample, or one for the batch."""
    return Metric(name, partial(_user_rows, name, function), _mean, paired=True)


def _mean(sums: Floats) -> Floats:
    """Divide the first column by the second."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = sums[..., 0] / sums[..., 1]
    return result


def _mean_iou(sums: Floats) -> Floats:
    """Average over classes with a union: the columns are intersections, then unions."""
    both, either = np.split(sums, 2, axis=-1)
    seen = either > 0
    ratios = np.divide(both, either, out=np.zeros_like(both), where=seen)
    with np.errstate(invalid="ignore"):
        result: Floats = ratios.sum(axis=-1) / seen.sum(axis=-1)
    return result


def _hits(right: NDArray[np.bool_], judged: NDArray[np.bool_]) -> Floats:
    return np.stack([(right & judged).sum(axis=1), judged.sum(axis=1)], axis=1).astype(np.float64)


def _top_k_rows(k: int, view: BatchView) -> Floats:
    classes, labels = view.classes, view.flat
    assert classes is not None and labels is not None
    judged = labels != IGNORED
    if classes.scores is None:
        return _hits(classes.predicted == labels, judged)
    wanted = np.where(judged, labels, 0)[:, None]
    score = np.take_along_axis(classes.scores, wanted, axis=1)
    earlier = np.arange(classes.scores.shape[1])[None, :, None] < wanted
    rank = ((classes.scores > score) | ((classes.scores == score) & earlier)).sum(axis=1)
    return _hits((rank < k) & (classes.predicted != IGNORED), judged)


def _iou_rows(view: BatchView) -> Floats:
    classes, labels = view.classes, view.flat
    assert classes is not None and labels is not None
    n, count = len(labels), classes.count or _INDICES
    if max(labels.max(), classes.predicted.max()) >= count:
        cause = f"miou can't be measured: where a model gives indices, classes are below {_INDICES}"
        raise DataError("OP711", cause)
    judged = labels != IGNORED
    same = judged & (classes.predicted == labels)
    predicted = judged & (classes.predicted != IGNORED)
    both = _histogram(labels, same, n, count)
    either = _histogram(labels, judged, n, count) + _histogram(classes.predicted, predicted, n, count) - both
    return np.concatenate([both, either], axis=1)


def _histogram(ids: Ids, chosen: NDArray[np.bool_], n: int, count: int) -> Floats:
    """Count each class in each sample, at chosen positions."""
    cells = np.arange(n)[:, None] * count + ids
    return np.bincount(cells[chosen], minlength=n * count).reshape(n, count).astype(np.float64)


def _agreement_rows(view: BatchView) -> Floats:
    assert view.classes is not None and view.original is not None and view.original.classes is not None
    original = view.original.classes.predicted
    return _hits(view.classes.predicted == original, original != IGNORED)


def _kl_rows(probabilities: bool, view: BatchView) -> Floats:
    assert view.classes is not None and view.original is not None and view.original.classes is not None
    p, q = view.original.classes.scores, view.classes.scores
    assert p is not None and q is not None
    return _finite_rows(np.array([_divergence(a, b, probabilities) for a, b in zip(p, q, strict=True)]))


def _divergence(p: Array, q: Array, probabilities: bool) -> float:
    """Compute the divergence of a sample's scores [classes, positions], averaged over positions."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = (_log(scores.astype(np.float64), probabilities) for scores in (p, q))
        return float((np.exp(log_p) * (log_p - log_q)).sum(axis=0).mean())


def _log(scores: Floats, probabilities: bool) -> Floats:
    """Give logarithms of probabilities; none is taken to be smaller than the smallest normal float32."""
    if probabilities:
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(axis=0)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=0))
    return result


def _distance_rows(distance: Callable[[Floats, Floats], Floats], output: str, view: BatchView) -> Floats:
    assert view.original is not None
    mine, original = (o[output].reshape(len(o[output]), -1) for o in (view.outputs, view.original.outputs))
    with np.errstate(invalid="ignore", over="ignore"):
        return _finite_rows(distance(mine.astype(np.float64), original.astype(np.float64)))


def _squared(x: Floats, y: Floats) -> Floats:
    result: Floats = ((x - y) ** 2).mean(axis=1)
    return result


def _cosine(x: Floats, y: Floats) -> Floats:
    dot, norms = (x * y).sum(axis=1), np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    same = (x == y).all(axis=1).astype(np.float64)  # where a vector is zero, no angle is defined
    result: Floats = np.divide(dot, norms, out=same, where=norms != 0)
    return result


def _finite_rows(values: Floats) -> Floats:
    """Make rows of a mean; samples for which there is no finite value aren't counted (but reported elsewhere)."""
    finite = np.isfinite(values)
    return np.stack([np.where(finite, values, 0), finite], axis=1).astype(np.float64)


def _user_rows(name: str, function: Callable[..., Any], view: BatchView) -> Floats:
    n = view.count
    with guarded(name, "the metric"):
        given = np.asarray(function(dict(view.outputs), view.labels), np.float64)
    if given.shape not in ((), (n,)) or not np.isfinite(given).all():
        what = f"shape {list(given.shape)}" if given.shape not in ((), (n,)) else "values that aren't finite"
        cause = f"the metric gave {what}, not a number for each of {n} samples or one for all"
        raise DataError("OP710", cause, where=name)
    rows = [[float(given) * n, n]] if given.ndim == 0 else np.stack([given, np.ones(n)], axis=1)
    return np.asarray(rows, np.float64)
