"""The metrics, and the choice of those that a batch allows.

Each metric maps a batch to rows of numbers that add up over samples, and sums to a value. So it is computed in one pass
in constant memory, and so are its bootstrap values for an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array
from onnxprune.data.functions import find_function, guarded, is_function_name
from onnxprune.errors import DataError
from onnxprune.evaluation.classes import BatchView, Ids, floats, is_distribution
from onnxprune.evaluation.intervals import Floats

PerSample = Callable[[BatchView], Floats]

_ROUNDING = 1e-10  # of a variance, relative to the mean square
_INDICES = 256  # maximum number of classes of models that output only indices


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: its name.
        rows: maps a batch to additive rows, [rows, columns]: one per sample, or one for the batch.
        value: computes the metric along the last axis of sums.
        output: the output that it measures, if it is one of several.
        share: whether it is a fraction of samples or positions.
        paired: whether it is also measured on the original; other metrics compare with the original.
    """

    name: str
    rows: PerSample
    value: Callable[[Floats], Floats]
    output: str | None = None
    share: bool = False
    paired: bool = False


def top_k(k: int) -> Metric:
    """Return top-k accuracy: the share of labels among the k highest scores. Ties go to the first class."""
    return Metric(f"top{k}", partial(_top_k_rows, k), _mean, share=True, paired=True)


def mean_iou() -> Metric:
    """Return mean intersection over union, over the classes in labels or predictions and all positions."""
    return Metric("miou", _iou_rows, _mean_iou, share=True, paired=True)


def agreement() -> Metric:
    """Return the share of predictions that equal the original's."""
    return Metric("agreement", _agreement_rows, _mean, share=True)


def kl(probabilities: bool) -> Metric:
    """Return the mean Kullback-Leibler divergence of the original's class distribution from the model's, in nats.

    Args:
        probabilities: whether the output is a distribution; else its softmax is used.
    """
    return Metric("kl", partial(_kl_rows, probabilities), _mean)


def mse(output: str, named: bool) -> Metric:
    """Return the mean squared difference from the original's output.

    Args:
        output: the output.
        named: whether the metric is reported with the output's name.
    """
    return Metric("mse", partial(_distance_rows, _squared, output), _mean, output if named else None)


def nmse(output: str, named: bool) -> Metric:
    """Return the mean squared difference from the original's output, relative to the variance of that output.

    Args:
        output: the output.
        named: whether the metric is reported with the output's name.
    """
    return Metric("nmse", partial(_relative_rows, output), _relative, output if named else None)


def cosine(output: str, named: bool) -> Metric:
    """Return the mean cosine similarity between a sample's output and the original's.

    Args:
        output: the output.
        named: whether the metric is reported with the output's name.
    """
    return Metric("cosine", partial(_distance_rows, _cosine, output), _mean, output if named else None)


def user_metric(name: str, function: Callable[..., Any]) -> Metric:
    """Return the mean of a user's function of (outputs, labels): a number for each sample, or one for the batch."""
    return Metric(name, partial(_user_rows, name, function), _mean, paired=True)


def _mean(sums: Floats) -> Floats:
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


def _mean_iou(sums: Floats) -> Floats:
    """Average over classes with a union: the columns are intersections, then unions."""
    both, either = np.split(sums, 2, axis=-1)
    seen = either > 0
    ratios = np.divide(both, either, out=np.zeros_like(both), where=seen)
    with np.errstate(invalid="ignore"):
        result: Floats = ratios.sum(axis=-1) / seen.sum(axis=-1)
    return result


def _hits(right: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Floats:
    return np.stack([(right & counted).sum(axis=1), counted.sum(axis=1)], axis=1).astype(np.float64)


def _top_k_rows(k: int, view: BatchView) -> Floats:
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


def _iou_rows(view: BatchView) -> Floats:
    classes, labels = view.classes, view.flat
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
    mine, original = (o[output].reshape(len(o[output]), -1) for o in (view.outputs, view.original.outputs))
    with np.errstate(invalid="ignore", over="ignore"):
        return _finite_rows(distance(mine.astype(np.float64), original.astype(np.float64)))


def _relative_rows(output: str, view: BatchView) -> Floats:
    assert view.original is not None
    mine, its = (
        o[output].reshape(len(o[output]), -1).astype(np.float64) for o in (view.outputs, view.original.outputs)
    )
    finite = np.asarray(np.isfinite(mine - its).all(axis=1, keepdims=True))
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


METRICS = ("top1", "top5", "miou", "agreement", "kl", "mse", "nmse", "cosine")
"""The names of the metrics."""

_LABELED = ("top1", "top5", "miou")
_DISTANCES = ("mse", "nmse", "cosine")
_UNCLEAR = "there is no output, or more than one, with a score for each class"
_ONLY_INDICES = "the model outputs only the predicted class"


def check_name(name: str) -> None:
    """Check the name of a metric.

    Raises:
        DataError: it is neither a known name nor of the form module:function (OP711).
    """
    if name not in METRICS and not is_function_name(name):
        near = get_close_matches(name.lower(), METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"metrics: {', '.join(METRICS)}, or module:function"
        raise DataError("OP711", f"there is no metric {name!r}", hint=hint)


def choose(first: BatchView, wanted: Sequence[str] | None) -> list[Metric]:
    """Return the metrics to measure.

    Args:
        first: the first batch.
        wanted: names of metrics, or None for all that the batch allows.

    Raises:
        DataError: a metric can't be measured, or none can (OP711); a function can't be imported (OP710).
    """
    if wanted is None:
        wanted = [name for name in METRICS if _lacks(name, first) is None and _sensible(name, first)]
    if not wanted:
        hint = "give data with class labels, or the original model (`against`)"
        raise DataError("OP711", "there is nothing to measure the model by", hint=hint)
    chosen: list[Metric] = []
    for name in dict.fromkeys(wanted):
        if is_function_name(name):
            chosen.append(user_metric(name, find_function(name)))
        elif lack := _lacks(name, first):
            raise DataError("OP711", f"{name} can't be measured: {lack}")
        else:
            chosen += _make(name, first)
    return chosen


def _lacks(name: str, first: BatchView) -> str | None:
    """Return what a metric lacks, None if nothing."""
    if name in _LABELED:
        if first.labels is None:
            return "the data have no labels"
        if first.flat is None or first.classes is None:
            return f"{_UNCLEAR}, in a shape that matches the labels"
        return _ONLY_INDICES if name == "top5" and first.classes.scores is None else None
    if first.original is None:
        return "it compares with the original model, which isn't given (`against`)"
    if name in _DISTANCES:
        return None if floats(first.outputs) else "no output has a floating-point type"
    if first.classes is None:
        return _UNCLEAR
    return _ONLY_INDICES if name == "kl" and first.classes.scores is None else None


def _sensible(name: str, first: BatchView) -> bool:
    classes = first.classes
    dense = classes is not None and classes.predicted.shape[1] > 1
    if name == "top5":
        return classes is not None and (classes.count or 0) > 5 and not dense
    if name == "nmse":  # where outputs may differ in scale
        return len(floats(first.outputs)) > 1
    return dense if name == "miou" else True


def _make(name: str, first: BatchView) -> list[Metric]:
    if name in _DISTANCES:
        make, names = {"mse": mse, "nmse": nmse, "cosine": cosine}[name], list(floats(first.outputs))
        return [make(output, named=len(names) > 1) for output in names]
    if name == "kl":
        assert first.original is not None and first.original.classes is not None
        scores = first.original.classes.scores
        return [kl(scores is not None and is_distribution(scores))]
    return [{"top1": top_k(1), "top5": top_k(5), "miou": mean_iou(), "agreement": agreement()}[name]]
