"""A fine-tuning run as tables, and the fields of its document."""

from __future__ import annotations

from typing import Any

from onnxprune.report.documents import pick
from onnxprune.report.evaluation import cells, title
from onnxprune.report.layout import FAINT, Tables, count, heading, left, paragraph, right, table
from onnxprune.train.finetune import FineTuned
from onnxprune.train.history import Epoch

_SHOWN = 8  # epochs in the table


def finetuning_fields(result: FineTuned) -> dict[str, Any]:
    """Return what a document contains of a fine-tuning run."""
    return pick(result, "kept", "epoch", "metric", "before", "after", "history")


def finetuning_tables(result: FineTuned) -> Tables:
    """Show the epochs, the evaluations before and after, and which model was kept."""
    if result.history:
        every = -(-len(result.history) // _SHOWN)
        shown = [e for e in result.history if e.number % every == 0 or e is result.history[-1]]
        columns = right("epoch", "loss", "rate", *([result.metric] if result.metric else []))
        yield heading("training", count(result.history[-1].steps, "step"))
        yield table(columns, map(_epoch, shown))
    if result.before is not None and result.after is not None:
        scores = zip(result.before.scores, result.after.scores, strict=True)
        compared = [(title(b), *cells(b.model, b), *cells(a.model, a)) for b, a in scores]
        yield heading("evaluation", f"on {count(result.before.samples, 'sample')} that weren't trained on")
        yield table(left("") + right("before") + left("") + right("after") + left(""), compared)
    yield paragraph(_outcome(result), FAINT)


def _epoch(epoch: Epoch) -> tuple[str, ...]:
    value = () if epoch.value is None else (f"{abs(epoch.value):.4g}",)
    return (str(epoch.number), f"{epoch.loss:.4f}", f"{epoch.rate:.2g}", *value)


def _outcome(result: FineTuned) -> str:
    """Say which model was kept, and why."""
    if result.metric is None:
        return "No metric was measured, so the trained model is kept."
    if result.sparsified and result.kept == "after":
        return "The weights were made sparse, which no metric measures, so the trained model is kept."
    if result.kept == "before":
        return f"By {result.metric}, the trained model is no better, so the model is kept as it was."
    return f"By {result.metric}, the trained model is better and is kept" + (
        f": the one of epoch {result.epoch}." if result.epoch else "."
    )
