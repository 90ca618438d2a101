"""Metrics of classes, and distances from the original's outputs.

Most metrics map a batch to rows of numbers that add up over samples, and sums to a value. So they are computed in one
pass in constant memory, and so are their bootstrap values for an interval. Others keep what they need of each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array
from onnxprune.errors import DataError
from onnxprune.evaluation.classes import Ids, is_distribution
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.view import BatchView
from onnxprune.runtime.functions import guarded
from onnxprune.settings.evaluation import METRICS

_ROUNDING = 1e-10  # of a variance, relative to the mean square
_INDICES = 256  # maximum number of classes of models that output only indices


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: its name.
        rows: maps a batch to additive rows, [rows, columns]: one per sample, or one for the batch. Of metrics that
            don't add up, to anything that is kept for each sample.
        value: computes the metric along the last axis of sums; None for metrics that don't add up.
        output: the output that it measures, if it is one of several.
        statistic: computes the metric of all that was kept, for weights of samples [n, draws].
        finish: turns all that was kept into additive rows, one per sample.
    """

    name: str
    rows: Callable[[BatchView], Any]
    value: Callable[[Floats], Floats] | None = None
    output: str | None = None
    statistic: Callable[[Sequence[Any], Floats], Floats] | None = None
    finish: Callable[[Sequence[Any]], Floats] | None = None

    @property
    def share(self) -> bool:
        """Whether it is a fraction of samples or positions."""
        return self.name in METRICS and METRICS[self.name].share

    @property
    def paired(self) -> bool:
        """Whether it is also measured on the original; other metrics compare with the original."""
        return self.name not in METRICS or METRICS[self.name].needs == "labels"

    @property
    def keeps(self) -> bool:
        """Whether it needs all samples at once."""
        return self.statistic is not None or self.finish is not None


def kl(original: Array | None) -> Metric:
    """Return the mean Kullback-Leibler divergence of the original's class distribution from the model's, in nats.

    Args:
        original: the original's scores of a batch. If they aren't distributions, the softmax of scores is used.
    """
    return Metric("kl", partial(_kl_rows, original is not None and is_distribution(original)), mean)


def distance(name: str, output: str, named: bool) -> Metric:
    """Return a metric of the distance from the original's output.

    Args:
        name: "mse" for the mean squared difference, "nmse" for the same relative to the variance of the original's
            output, or "cosine" for the mean cosine similarity of samples.
        output: the output.
        named: whether the metric is reported with the output's name.
    """
    rows, value = _DISTANCES[name]
    return Metric(name, partial(rows, output), value, output if named else None)


def user_metric(name: str, function: Callable[..., Any]) -> Metric:
    """Return the mean of a user's function of (outputs, labels): a number for each sample, or one for the batch."""
    return Metric(name, partial(_user_rows, name, function), mean)


def mean(sums: Floats) -> Floats:
    """Divide the first column by the second."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = sums[..., 0] / sums[..., 1]
    return result


def _relative(sums: Floats) -> Floats:
    """Divide squared differences by squared deviations from the mean, of their number, sum and sum of squares."""
    error, count, total, squares = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = squares - total**2 / count
        scale = np.where(spread > _ROUNDING * squares, spread, squares)  # the mean square where nothing varies
        result: Floats = np.where(error == 0, 0.0, error / scale)
    return result


def mean_iou(sums: Floats) -> Floats:
    """Average over classes with a union: the columns are intersections, then unions."""
    both, either = np.split(sums, 2, axis=-1)
    seen = either > 0
    ratios = np.divide(both, either, out=np.zeros_like(both), where=seen)
    with np.errstate(invalid="ignore"):
        result: Floats = ratios.sum(axis=-1) / seen.sum(axis=-1)
    return result


def _hits(right: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Floats:
    return np.stack([(right & counted).sum(axis=1), counted.sum(axis=1)], axis=1).astype(np.float64)


def top_k_rows(k: int, view: BatchView) -> Floats:
    """Return how many labels are among the k highest scores, and how many there are. Ties go to the first class."""
    classes, labels = view.classes, view.flat
    assert classes is not None and labels is not None
    counted = labels != IGNORED
    if classes.scores is None:
        return _hits(classes.predicted == labels, counted)
    wanted = np.where(counted, labels, 0)[:, None]
    score = np.take_along_axis(classes.scores, wanted, axis=1)
    earlier = np.arange(classes.scores.shape[1])[None, :, None] < wanted
    rank = ((classes.scores > score) | ((classes.scores == score) & earlier)).sum(axis=1)
    return _hits((rank < k) & (classes.predicted != IGNORED), counted)


def iou_rows(original: bool, view: BatchView) -> Floats:
    """Return intersection and union of each class with the labels, or with the original's predictions.

    Mean IoU is over the classes that occur: M. Everingham et al., "The PASCAL visual object classes challenge: a
    retrospective", IJCV 111 (2015), section 2.4.
    """
    classes, labels = view.classes, view.flat
    if original and view.original is not None:
        labels = None if view.original.classes is None else view.original.classes.predicted
    assert classes is not None and labels is not None
    n, count = len(labels), classes.count or _INDICES
    if max(labels.max(), classes.predicted.max()) >= count:
        cause = f"miou can't be measured: class indices that a model outputs must be below {_INDICES}"
        raise DataError("OP711", cause)
    counted = labels != IGNORED
    same = counted & (classes.predicted == labels)
    predicted = counted & (classes.predicted != IGNORED)
    both = _histogram(labels, same, n, count)
    either = _histogram(labels, counted, n, count) + _histogram(classes.predicted, predicted, n, count) - both
    return np.concatenate([both, either], axis=1)


def _histogram(ids: Ids, chosen: NDArray[np.bool_], n: int, count: int) -> Floats:
    """Return the count of each class in each sample, at chosen positions: [n, count]."""
    cells = np.arange(n)[:, None] * count + ids
    return np.bincount(cells[chosen], minlength=n * count).reshape(n, count).astype(np.float64)


def agreement_rows(view: BatchView) -> Floats:
    """Return how many predictions equal the original's, and how many there are."""
    assert view.classes is not None and view.original is not None and view.original.classes is not None
    original = view.original.classes.predicted
    return _hits(view.classes.predicted == original, original != IGNORED)


def _kl_rows(probabilities: bool, view: BatchView) -> Floats:
    assert view.classes is not None and view.original is not None and view.original.classes is not None
    p, q = view.original.classes.scores, view.classes.scores
    assert p is not None and q is not None
    return _finite_rows(np.array([_divergence(a, b, probabilities) for a, b in zip(p, q, strict=True)]))


def _divergence(p: Array, q: Array, probabilities: bool) -> float:
    """Return the divergence of a sample's scores [classes, positions], averaged over positions."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = (_log(scores.astype(np.float64), probabilities) for scores in (p, q))
        return float((np.exp(log_p) * (log_p - log_q)).sum(axis=0).mean())


def _log(scores: Floats, probabilities: bool) -> Floats:
    """Return log probabilities; probabilities are clamped to the smallest normal float32."""
    if probabilities:
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(axis=0)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=0))
    return result


def _distance_rows(distance: Callable[[Floats, Floats], Floats], output: str, view: BatchView) -> Floats:
    assert view.original is not None
    mine, original = (o[output].reshape(len(o[output]), -1) for o in (view.compared, view.original.compared))
    with np.errstate(invalid="ignore", over="ignore"):
        return _finite_rows(distance(mine.astype(np.float64), original.astype(np.float64)))


def _relative_rows(output: str, view: BatchView) -> Floats:
    assert view.original is not None
    mine, its = (
        o[output].reshape(len(o[output]), -1).astype(np.float64) for o in (view.compared, view.original.compared)
    )
    finite = np.asarray((np.isfinite(mine) & np.isfinite(its)).all(axis=1, keepdims=True))
    mine, its = (np.where(finite, x, 0) for x in (mine, its))
    sums = [((mine - its) ** 2).sum(axis=1), finite[:, 0] * its.shape[1], its.sum(axis=1), (its**2).sum(axis=1)]
    return np.stack(sums, axis=1).astype(np.float64)


def _squared(x: Floats, y: Floats) -> Floats:
    result: Floats = ((x - y) ** 2).mean(axis=1)
    return result


def _cosine(x: Floats, y: Floats) -> Floats:
    dot, norms = (x * y).sum(axis=1), np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    same = (x == y).all(axis=1).astype(np.float64)  # the result for zero vectors, which have no angle
    result: Floats = np.divide(dot, norms, out=same, where=norms != 0)
    return result


_DISTANCES: Mapping[str, tuple[Callable[[str, BatchView], Floats], Callable[[Floats], Floats]]] = {
    "mse": (partial(_distance_rows, _squared), mean),
    "nmse": (_relative_rows, _relative),
    "cosine": (partial(_distance_rows, _cosine), mean),
}


def _finite_rows(values: Floats) -> Floats:
    """Return rows of a mean, without values that aren't finite (`Evaluation.not_finite` counts those)."""
    finite = np.isfinite(values)
    return np.stack([np.where(finite, values, 0), finite], axis=1).astype(np.float64)


def _user_rows(name: str, function: Callable[..., Any], view: BatchView) -> Floats:
    n = view.count
    with guarded(name, "the metric"):
        given = np.asarray(function(dict(view.outputs), view.labels), np.float64)
    if given.shape not in ((), (n,)) or not np.isfinite(given).all():
        what = f"shape {list(given.shape)}" if given.shape not in ((), (n,)) else "values that aren't finite"
        cause = f"the metric returned {what}, not a number for each of {n} samples or one for all"
        raise DataError("OP710", cause, where=name)
    rows = [[float(given) * n, n]] if given.ndim == 0 else np.stack([given, np.ones(n)], axis=1)
    return np.asarray(rows, np.float64)
