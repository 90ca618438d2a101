"""Evaluations and fine-tuning runs as tables, and the fields of their documents."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from onnxprune.evaluation.intervals import Estimate
from onnxprune.evaluation.score import Evaluation, Score
from onnxprune.report.documents import pick
from onnxprune.report.labels import PLAIN, Labels
from onnxprune.report.layout import FAINT, Tables, count, flexible, heading, left, paragraph, percent, right, table
from onnxprune.settings.evaluation import higher_is_better

if TYPE_CHECKING:
    from onnxprune.recover import LeftOut
    from onnxprune.train.finetune import FineTuned
    from onnxprune.train.history import Epoch
    from onnxprune.train.tickets import Ticket

_EPOCHS = 8  # most rows of the table of epochs


def evaluation_tables(evaluation: Evaluation) -> Tables:
    """Show an evaluation, each value with its interval."""
    paired = any(score.original is not None for score in evaluation.scores)
    yield heading("evaluation", f"on {count(evaluation.samples, 'sample')}, {evaluation.confidence:.0%} intervals")
    columns = left("") + right("model") + left("") + right("original") + left("") + right("change") + left("")
    rows = (
        (s.title, *_cells(s.model, s), *_cells(s.original, s), *_cells(s.difference, s, "+")) for s in evaluation.scores
    )
    yield table(columns if paired else columns[:3], rows if paired else (row[:3] for row in rows))
    if paired:
        yield paragraph("The change is the model's value minus the original's on the same samples.", FAINT)
    yield from _recognized(evaluation)


def _recognized(evaluation: Evaluation) -> Tables:
    """Say what the task was recognized by, except for the usual one."""
    if evaluation.task != "classification":
        yield paragraph(f"{evaluation.recognized}.", FAINT)


def finetuning_fields(result: FineTuned) -> dict[str, Any]:
    """Return what a document contains of a fine-tuning run."""
    names = ("kept", "epoch", "epochs", "metric", "before", "after", "follows", "history", "untrained", "ticket")
    return pick(result, *names)


def finetuning_tables(result: FineTuned) -> Tables:
    """Show the epochs, the evaluations before and after, and which model was kept."""
    if result.history:
        every = -(-len(result.history) // _EPOCHS)
        shown = [e for e in result.history if e.number % every == 0 or e is result.history[-1]]
        columns = right("epoch", "loss", "rate", *([result.metric] if result.metric else []))
        yield heading("training", count(result.history[-1].steps, "step"))
        yield table(columns, (_epoch(epoch, result.metric) for epoch in shown))
        if len(parts := result.history[0].parts) > 1:
            last = result.history[-1].parts
            rows = [(name, f"{value:.4f}", f"{last.get(name, value):.4f}") for name, value in parts.items()]
            yield heading("losses", "means over the first and the last epoch")
            yield table(left("") + right("first", "last"), rows)
        if skipped := sum(epoch.skipped for epoch in result.history):
            what = "whose loss or gradient wasn't finite, changed nothing."
            yield paragraph(f"{count(skipped, 'step')}, {what}", FAINT)
    if result.before is not None and result.after is not None:
        scores = zip(result.before.scores, result.after.scores, strict=True)
        compared = [(b.title, *_cells(b.model, b), *_cells(a.model, a)) for b, a in scores]
        yield heading("evaluation", f"on {count(result.before.samples, 'sample')} that weren't trained on")
        yield table(left("") + right("before") + left("") + right("after") + left(""), compared)
        yield from _recognized(result.before)
    if result.ticket is not None:
        yield from _ticket(result.ticket)
    if result.follows:
        followed = ", ".join(f"{name} ({' and '.join(by)})" for name, by in result.follows.items())
        yield paragraph(f"Trained on {followed}.", FAINT)
    yield from left_out_tables("not trained", result.untrained)
    yield paragraph(_outcome(result), FAINT)


def left_out_tables(title: str, layers: Sequence[LeftOut], labels: Labels = PLAIN) -> Tables:
    """Show the layers whose weights a method couldn't change, with the reasons; nothing if there are none."""
    if layers:
        yield heading(title, count(len(layers), "layer"))
        yield table(
            flexible("node") + left("operator") + flexible("reason"),
            ((labels.name(x.node), x.operator, x.reason) for x in layers),
        )


def _cells(estimate: Estimate | None, score: Score, sign: str = "") -> tuple[str, str]:
    """Write a value and its interval: a share in percent, a change of a share in points."""
    if estimate is None:
        return "", ""

    def write(value: float) -> str:
        if not isfinite(value):
            return "-"
        return f"{100 * value:{sign}z.1f}" if score.share else f"{value:{sign}z.4g}"

    unit = "" if not score.share else " pt" if sign else " %"
    return write(estimate.value) + unit, f"{write(estimate.low)} to {write(estimate.high)}"


def _epoch(epoch: Epoch, metric: str | None) -> tuple[str, ...]:
    sign = 1 if metric is None or higher_is_better(metric) else -1  # values of epochs are higher for better models
    value = () if epoch.value is None else (f"{sign * epoch.value:.4g}",)
    return (str(epoch.number), f"{epoch.loss:.4f}", f"{epoch.rate:.2g}", *value)


def _ticket(ticket: Ticket) -> Tables:
    """Show the networks of a search for a lottery ticket, and whether the early values matter."""
    networks = [*((f"step {i}" if i else "dense", each) for i, each in enumerate(ticket.rounds))]
    networks += [("ticket's zeros, shuffled values", ticket.control)]
    shown = [(name, each, _judging(each.after)) for name, each in networks]
    yield heading("lottery ticket", "networks that were trained alike; the last step is the ticket")
    title = next((score.title for *_, score in shown if score is not None), "")
    rows = [
        (name, percent(each.zeros), *(("", "") if score is None else _cells(score.model, score)))
        for name, each, score in shown
    ]
    yield table(left("") + right("zeros", title) + left(""), rows)
    others = ("shuffled values", ticket.against_control), ("the dense network", ticket.against_dense)
    for what, found in others:
        score = _judging(found)
        if score is not None and score.difference is not None:
            change, interval = _cells(score.difference, score, "+")
            beyond = "within" if score.difference.low <= 0 <= score.difference.high else "beyond"
            yield paragraph(
                f"{score.title} of the ticket minus that of {what}: {change} ({interval}), {beyond} chance."
            )
    if not ticket.rewound:
        text = (
            "Networks began with the values of the given model. If it was trained before, this is no lottery ticket: "
        )
        yield paragraph(text + "give the start of its training with `rewind`.")


def _judging(evaluation: Evaluation | None) -> Score | None:
    """Return the score that answers are judged by; None if there is none."""
    metric = None if evaluation is None else evaluation.judging
    return None if evaluation is None or metric is None else evaluation[metric]


def _outcome(result: FineTuned) -> str:
    """Show which model was kept, and why."""
    if result.metric is None:
        return "No metric was measured, so the trained model is kept."
    if result.sparsified and result.kept == "after":
        return "The weights were made sparse, which no metric measures, so the trained model is kept."
    if result.kept == "before":
        return f"By {result.metric}, the trained model is no better, so the model is kept as it was."
    return f"By {result.metric}, the trained model is better and is kept" + (
        f": the one of epoch {result.epoch}." if result.epoch else "."
    )
