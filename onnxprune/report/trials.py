"""Tables and fields of a search within a drop in accuracy: the models that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from onnxprune.report.documents import pick
from onnxprune.report.layout import FAINT, Tables, flexible, heading, left, paragraph, right, table
from onnxprune.settings.evaluation import METRICS

if TYPE_CHECKING:
    from onnxprune.workflow.trials import Trial


def trial_fields(trial: Trial) -> dict[str, Any]:
    """Return what a document contains of a trial; no drop and no macs if it was out of reach."""
    known = isfinite(trial.loss)
    found = {"drop": trial.drop if known else None, "macs": trial.macs if isfinite(trial.macs) else None}
    sizes = {name: list(size) for name, size in trial.sizes.items()}
    return {"resolution": sizes, **pick(trial, "share", "samples"), **found, "kept": trial.accepted}


def trial_tables(trials: Sequence[Trial], metric: str) -> Tables:
    """Show the models that were tried, the largest first, and the metric that their drop is measured in."""
    facts, best = METRICS[metric], min((t for t in trials if t.accepted), key=lambda t: t.share, default=None)
    yield heading("models tried", f"{facts.title}, 95% intervals, on samples that choose")
    columns = left("images") + right("MACs", "drop") + left("") + flexible("remark")
    rows = [
        (
            trial.image or "as they are",
            f"{trial.macs:.1%}",
            f"{100 * trial.loss:z.1f}%",
            f"{100 * trial.drop.low:z.1f} to {100 * trial.drop.high:z.1f}",
            "taken" if trial is best else "kept" if trial.accepted else "",
        )
        for trial in sorted(trials, key=lambda trial: -trial.macs)
        if isfinite(trial.loss)
    ]
    yield table(columns, rows)
    yield paragraph("The result is judged on other samples.", FAINT)
