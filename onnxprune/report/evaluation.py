"""Tables of an evaluation."""

from __future__ import annotations

from math import isfinite

from onnxprune.evaluation.intervals import Estimate
from onnxprune.evaluation.measure import Evaluation, Score
from onnxprune.report.layout import FAINT, Tables, count, heading, left, paragraph, right, table

_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mean IoU",
    "mse": "mean squared error",
    "cosine": "cosine of outputs",
    "kl": "KL divergence, nats",
}


def evaluation_tables(evaluation: Evaluation) -> Tables:
    """Show an evaluation, each value with its interval."""
    paired = any(score.original is not None for score in evaluation.scores)
    yield heading("evaluation", f"on {count(evaluation.samples, 'sample')}, {evaluation.confidence:.0%} intervals")
    columns = left("") + right("model") + left("") + right("original") + left("") + right("change") + left("")
    rows = (
        (title(s), *cells(s.model, s), *cells(s.original, s), *cells(s.difference, s, "+")) for s in evaluation.scores
    )
    yield table(columns if paired else columns[:3], rows if paired else (row[:3] for row in rows))
    if paired:
        yield paragraph("The change is the model's value minus the original's on the same samples.", FAINT)


def title(score: Score) -> str:
    """Return the title of a metric in a table."""
    name = _TITLES.get(score.metric, score.metric)
    return name if score.output is None else f"{name}, {score.output}"


def cells(estimate: Estimate | None, score: Score, sign: str = "") -> tuple[str, str]:
    """Write a value and its interval: a share in percent, a change of a share in points."""
    if estimate is None:
        return "", ""

    def write(value: float) -> str:
        if not isfinite(value):
            return "-"
        return f"{100 * value:{sign}.1f}" if score.share else f"{value:{sign}.4g}"

    unit = "" if not score.share else " pt" if sign else " %"
    return write(estimate.value) + unit, f"{write(estimate.low)} to {write(estimate.high)}"
