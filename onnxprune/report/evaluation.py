"""An evaluation as tables for people, and as a document for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from rich.console import RenderableType

from onnxprune.evaluation.intervals import Estimate
from onnxprune.evaluation.measure import Evaluation, Score
from onnxprune.report.layout import FAINT, count, heading, paragraph, stack, table

_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mean IoU",
    "mse": "mean squared error",
    "cosine": "cosine of outputs",
    "kl": "KL divergence, nats",
}


def evaluation_fields(evaluation: Evaluation) -> Mapping[str, Any]:
    """Describe an evaluation."""
    return asdict(evaluation)


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """Tabulate an evaluation, each value with its interval."""
    paired = any(score.original is not None for score in evaluation.scores)
    columns = "|model >|" + ("|original >||change >|" if paired else "")
    rows = [
        [title(score), *cells(score.model, score), *(_paired(score) if paired else ())] for score in evaluation.scores
    ]
    note = f"on {count(evaluation.samples, 'sample')}, {evaluation.confidence:.0%} intervals"
    meaning = "The change is the model's value minus the original's on the same samples."
    parts = [heading("evaluation", note), table(columns, rows)]
    return stack(*parts, paragraph(meaning, FAINT)) if paired else stack(*parts)


def title(score: Score) -> str:
    """Return what a metric is called in a table."""
    name = _TITLES.get(score.metric, score.metric)
    return name if score.output is None else f"{name}, {score.output}"


def _paired(score: Score) -> tuple[str, ...]:
    original = ("", "") if score.original is None else cells(score.original, score)
    change = ("", "") if score.difference is None else cells(score.difference, score, sign="+")
    return (*original, *change)


def cells(estimate: Estimate, score: Score, sign: str = "") -> tuple[str, str]:
    """Write a value and its interval: a share in per cent, a change of one in points."""

    def write(value: float) -> str:
        if not isfinite(value):
            return "-"
        return f"{100 * value:{sign}.1f}" if score.share else f"{value:{sign}.4g}"

    unit = "" if not score.share else " pt" if sign else " %"
    return write(estimate.value) + unit, f"{write(estimate.low)} to {write(estimate.high)}"
