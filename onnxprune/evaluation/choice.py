"""Which metrics can be measured, and which are when nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from onnxprune.data.functions import find_function, is_function_name
from onnxprune.errors import DataError
from onnxprune.evaluation.classes import is_distribution
from onnxprune.evaluation.metrics import Metric, agreement, cosine, kl, mean_iou, mse, top_k, user_metric
from onnxprune.evaluation.views import BatchView, floats

METRICS = ("top1", "top5", "miou", "agreement", "kl", "mse", "cosine")
"""The names of the metrics."""

_LABELED = ("top1", "top5", "miou")
_DISTANCES = ("mse", "cosine")
_UNCLEAR = "there is no output, or more than one, that has a score for each class"


def check_name(name: str) -> None:
    """Refuse what names no metric.

    Raises:
        DataError: it is neither a known name nor of the form module:function (OP711).
    """
    if name not in METRICS and not is_function_name(name):
        near = get_close_matches(name.lower(), METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}, and module:function"
        raise DataError("OP711", f"there is no metric {name!r}", hint=hint)


def choose(first: BatchView, wanted: Sequence[str] | None) -> list[Metric]:
    """Choose what to measure by what the first batch shows.

    Args:
        first: the first batch.
        wanted: names of metrics, or None for those that make sense.

    Raises:
        DataError: one can't be measured, or there is nothing to measure (OP711); a function can't be used (OP710).
    """
    if wanted is None:
        wanted = [name for name in METRICS if _lacks(name, first) is None and _sensible(name, first)]
    if not wanted:
        hint = "give data with class labels, or the original model (against, --against)"
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
    """Tell what is missing for a metric, None if nothing."""
    if name in _LABELED:
        if first.labels is None:
            return "the data have no labels"
        if first.flat is None or first.classes is None:
            return f"{_UNCLEAR}, in a shape that goes with the labels"
        return "the model tells only the class it predicts" if name == "top5" and first.classes.scores is None else None
    if first.original is None:
        return "it compares with the original model, which isn't given (against, --against)"
    if name in _DISTANCES:
        return None if floats(first.outputs) else "no output is of real numbers"
    if first.classes is None:
        return _UNCLEAR
    return "the model tells only the class it predicts" if name == "kl" and first.classes.scores is None else None


def _sensible(name: str, first: BatchView) -> bool:
    classes = first.classes
    dense = classes is not None and classes.predicted.shape[1] > 1
    if name == "top5":
        return classes is not None and (classes.count or 0) > 5 and not dense
    return dense if name == "miou" else True


def _make(name: str, first: BatchView) -> list[Metric]:
    if name in _DISTANCES:
        make, names = {"mse": mse, "cosine": cosine}[name], list(floats(first.outputs))
        return [make(output, named=len(names) > 1) for output in names]
    if name == "kl":
        assert first.original is not None and first.original.classes is not None
        scores = first.original.classes.scores
        return [kl(scores is not None and is_distribution(scores))]
    return [{"top1": top_k(1), "top5": top_k(5), "miou": mean_iou(), "agreement": agreement()}[name]]
