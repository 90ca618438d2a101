"""How far a model's answers are those of its original, in the terms of its task, and what counts as far."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

from onnxprune.evaluation.intervals import Estimate
from onnxprune.evaluation.score import Evaluation, Score
from onnxprune.settings.evaluation import METRICS, TaskName, higher_is_better, judging

Answers = Literal["kept", "partly kept", "not kept"]

# Of answers that differ: at most the first are kept, up to the second partly.
_SHARES = (0.03, 0.15)
# Of the root mean square error of outputs, relative to their standard deviation.
_ERRORS = (0.1, 0.3)

_KNOWN = 0.99  # accuracy of the original from which on the samples look like those that it was trained on

# The metrics that say it best, of each task the first that was measured.
_TELLING = ("agreement", "boxes_original", "cer_original", "neighbors", "nmse")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far a model's answers are those of its original.

    Attributes:
        metric: the metric, see `METRICS`. Of several outputs, the one that differs most counts.
        output: the output, if it is one of several.
        value: its value; of nmse the square root, an error relative to the output's standard deviation.
        samples: the number of samples.
        answers: whether the answers are kept.
        task: what the model is for.
        accuracy: the accuracy by labels of the model and of the original, if there are labels.
    """

    metric: str
    output: str | None
    value: Estimate
    samples: int
    answers: Answers
    task: TaskName | None = None
    accuracy: Score | None = None


def fidelity(evaluation: Evaluation) -> Fidelity | None:
    """Return how far the answers are those of the original; None if that wasn't measured."""
    for metric in _TELLING:
        scores = [s for s in evaluation.scores if s.metric == metric and isfinite(s.model.value)]
        if scores:
            break
    else:
        return None
    worst = max(scores, key=lambda score: _loss(metric, score.model.value))
    value, limits = worst.model, _SHARES
    if not METRICS[metric].share:
        value, limits = Estimate(*(sqrt(max(v, 0.0)) for v in (value.value, value.low, value.high))), _ERRORS
    lost = float("inf") if evaluation.not_finite else _loss(metric, value.value)
    by_labels = judging([score.metric for score in evaluation.scores if score.original is not None])
    return Fidelity(
        metric=metric,
        output=worst.output,
        value=value,
        samples=evaluation.samples,
        answers="kept" if lost <= limits[0] else "partly kept" if lost <= limits[1] else "not kept",
        task=evaluation.task,
        accuracy=None if by_labels is None else evaluation[by_labels],
    )


def better(one: Fidelity, other: Fidelity) -> bool:
    """Whether one keeps the answers better than the other, beyond the error of measurement."""
    a, b = one.value, other.value
    return one.metric == other.metric and (a.low > b.high if higher_is_better(one.metric) else a.high < b.low)


def perhaps_trained_on(accuracy: Score | None) -> str | None:
    """Return a warning if the original's accuracy is so high that it may have been trained on the samples."""
    if accuracy is None or accuracy.original is None or not METRICS[accuracy.metric].share:
        return None
    if accuracy.original.value <= _KNOWN or not METRICS[accuracy.metric].higher:
        return None
    return (
        f"the original's {METRICS[accuracy.metric].title} is {accuracy.original.value:.1%} on these samples; if it was "
        "trained on them, expect a larger drop on new ones"
    )


def largest_kept(metric: str) -> float:
    """Return the largest loss in a metric at which answers count as kept; of nmse the squared error."""
    return _SHARES[0] if METRICS[metric].share else _ERRORS[0] ** 2


def _loss(metric: str, value: float) -> float:
    return round(1 - value if higher_is_better(metric) else value, 9)
