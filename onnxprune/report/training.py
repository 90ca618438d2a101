"""A fine-tuning as tables for people, and as a document for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from onnxprune.report.evaluation import cells, evaluation_fields, title
from onnxprune.report.layout import FAINT, count, heading, paragraph, stack, table
from onnxprune.train.finetune import FineTuned
from onnxprune.train.history import Epoch, to_fields

_SHOWN = 8  # epochs in the table


def finetuning_fields(result: FineTuned) -> Mapping[str, Any]:
    """Describe a fine-tuning."""
    return {
        "kept": result.kept,
        "epoch": result.epoch,
        "metric": result.metric,
        "before": None if result.before is None else evaluation_fields(result.before),
        "after": None if result.after is None else evaluation_fields(result.after),
        "history": to_fields(result.history),
    }


def finetuning_table(result: FineTuned) -> RenderableType:
    """Tabulate the epochs, and what the model was worth before and after."""
    parts: list[RenderableType] = []
    if result.history:
        every = -(-len(result.history) // _SHOWN)
        shown = [e for e in result.history if e.number % every == 0 or e is result.history[-1]]
        columns = "epoch >|loss >|rate >" + (f"|{result.metric} >" if result.metric else "")
        parts += [heading("training", count(result.history[-1].steps, "step")), table(columns, map(_epoch, shown))]
    if result.before is not None and result.after is not None:
        held = f"on {count(result.before.samples, 'sample')} that weren't trained on"
        scores = zip(result.before.scores, result.after.scores, strict=True)
        compared = [(title(b), *cells(b.model, b), *cells(a.model, a)) for b, a in scores]
        parts += [heading("evaluation", held), table("|before >||after >|", compared)]
    parts.append(paragraph(verdict(result), FAINT))
    return stack(*parts)


def _epoch(epoch: Epoch) -> tuple[str, ...]:
    value = () if epoch.value is None else (f"{abs(epoch.value):.4g}",)
    return (str(epoch.number), f"{epoch.loss:.4f}", f"{epoch.rate:.2g}", *value)


def verdict(result: FineTuned) -> str:
    """Say which model was kept, and why."""
    if result.metric is None:
        return "Nothing judged the result, so the trained model is kept as it came out."
    if result.sparsified and result.kept == "after":
        return "Weights were made sparse, which no metric sees, so the trained model is kept as it came out."
    if result.kept == "before":
        return f"By {result.metric} the trained model is no better, so the model is kept as it was."
    return f"By {result.metric} the trained model is better, and it is kept." + (
        f" It is that of epoch {result.epoch}." if result.epoch else ""
    )
