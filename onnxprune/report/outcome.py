"""The lines that a run ends in: what was won, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rich.console import RenderableType

from onnxprune.benchmarking.speed import Speed
from onnxprune.evaluation.fidelity import Answers, Fidelity, fidelity
from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.layout import BAD, CODE, GOOD, Tables, count, line, milliseconds, paragraph, percent, si
from onnxprune.settings.evaluation import METRICS
from onnxprune.train.finetune import FineTuned
from onnxprune.workflow.outcome import Outcome
from onnxprune.workflow.prune_model import Judged

_STYLES: Mapping[Answers, str] = {"kept": GOOD, "partly kept": CODE, "not kept": BAD}
_SAMPLES: Mapping[Judged, tuple[str, str]] = {
    "held out": ("held-out sample", ""),
    "calibration": ("sample", " that calibrated it"),
    "generated": ("generated input", ""),
}
_FASTER = 1.1  # times as fast, up to which no gain is seen
_WIDE = 1.5  # ratio of the ends of an interval that says little

# What a metric says, by its name or by the task.
_MEANINGS = {
    "agreement": "same top class as the original on {} of {}",
    "segmentation": "same class as the original at {} of the positions of {}",
    "binary": "same decision as the original on {} of {}",
    "multilabel": "same decisions as the original on {} of the labels of {}",
    "boxes_original": "{} of the boxes match the original's, on {}",
    "cer_original": "{} of the characters differ from the original's, on {}",
    "neighbors": "same nearest neighbor as in the original for {} of {}",
    "nmse": "outputs differ from the original's by {} of their standard deviation, on {}",
}
_KEEP = "To keep it, give inputs with `data`; labels are optional."


def outcome_tables(found: Outcome, files: tuple[int, int]) -> Tables:
    """Show how much faster and smaller the result is, and how far its answers are those of the original.

    Args:
        found: what was measured.
        files: bytes of the user's file and of the result.
    """
    yield gain_line(found.speed, found.untimed, files)
    yield _answers(found)
    if (own := found.calibrated) is not None and found.overfitted:
        said = meaning(own, figures_of(own), "calibration")
        yield paragraph(line(("the repair doesn't generalize", CODE), f": {said}. Give more samples, or remove less"))


def unmeasured_tables() -> Tables:
    """Say that a plan was made without data."""
    yield paragraph(line(("accuracy isn't considered", CODE), f": channels are chosen by their weights alone. {_KEEP}"))


def trained_tables(result: FineTuned) -> Tables:
    """Show in a line how training changed the answers, if that was measured."""
    before, after = (None if e is None else fidelity(e) for e in (result.before, result.after))
    if before is not None and after is not None:
        last = after if result.kept == "after" else before
        change = f"{percent(before.value.value)} → {percent(last.value.value)}"
        yield paragraph(
            line((f"answers {last.answers}", _STYLES[last.answers]), f": {meaning(last, change, 'held out')}")
        )


def gain_line(speed: Speed | None, why: str, files: tuple[int, int]) -> RenderableType:
    """Return the line that says how much faster and smaller a model is.

    Args:
        speed: the speed.
        why: why it wasn't measured, if so.
        files: bytes of the user's file and of the result.
    """
    old, new = files
    size = (
        "as large as before" if new == old else f"{percent(abs(1 - new / old))} {'smaller' if new < old else 'larger'}"
    )
    smaller = f"file {size}: {si(old, 'B')} → {si(new, 'B')}"
    if speed is None:
        return paragraph(line(("speed not measured", CODE), f" ({why}); {smaller}"))
    times = f"{milliseconds(speed.before)} → {milliseconds(speed.after)} on {speed.provider}"
    gain, faster = f"{speed.speedup.value:.2f}x as fast", speed.speedup
    wide = faster.high > _WIDE * faster.low
    interval = f" ({faster.low:.2f} to {faster.high:.2f}{', disturbed by other processes' if wide else ''})"
    word = pace(faster, speed.before, speed.after)
    verdict = ((gain, GOOD), interval) if word == "faster" else ((word, CODE), f": {gain}{interval}")
    return paragraph(line(*verdict, f", {times}; {smaller}"))


def pace(faster: Estimate, before: float, after: float) -> Literal["faster", "slower", "not faster", "speed unclear"]:
    """Return what a speed-up says.

    Args:
        faster: the speed-up.
        before: seconds before, the median.
        after: seconds after.
    """
    if faster.low > 1 and before > after:  # else rounds were too few, or disturbed
        return "faster"
    equal = faster.low <= 1 and faster.high < _FASTER and faster.high <= _WIDE * faster.low
    return "slower" if faster.high < 1 else "not faster" if equal else "speed unclear"


def _answers(found: Outcome) -> RenderableType:
    if found.unchanged:
        return paragraph(line(("answers kept", GOOD), ": nothing was removed, so the model computes the same"))
    close = found.fidelity
    said = f"not compared ({found.uncompared or 'no output can be compared'})"
    if close is not None:
        said = _said(close, found.judged)
    if found.judged == "generated":
        return paragraph(line(("accuracy not kept", BAD), f": {said}. {_KEEP}"))
    if close is None:
        return paragraph(line(("answers", CODE), f" {said}"))
    return answers_line(close, found.judged, trained=found.trained)


def answers_line(found: Fidelity, judged: Judged, *, trained: bool = False) -> RenderableType:
    """Return the line that says how far a model's answers are those of the original.

    Args:
        found: what was measured.
        judged: the samples.
        trained: whether the weights were trained.
    """
    advice = "" if found.answers == "kept" else ". Remove less" + ("" if trained else ", or train it: `finetune`")
    return paragraph(line((f"answers {found.answers}", _STYLES[found.answers]), f": {_said(found, judged)}{advice}"))


def _said(found: Fidelity, judged: Judged) -> str:
    said = meaning(found, figures_of(found), judged)
    if (score := found.accuracy) is not None and score.original is not None:
        figures = score.original.value, score.model.value
        before, after = (percent(x) if score.share else f"{x:.4g}" for x in figures)
        said += f"; {METRICS[score.metric].title} {before} → {after}"
    return said


def meaning(found: Fidelity, value: str, judged: Judged) -> str:
    """Return in words how far answers are those of the original.

    Args:
        found: how far.
        value: its value in words.
        judged: what the samples are.
    """
    key = found.task if found.metric == "agreement" and found.task in _MEANINGS else found.metric
    kind, more = _SAMPLES[judged]
    samples = count(found.samples, kind) + more
    text = _MEANINGS[key].format(value, samples)
    if found.output is None:
        return text
    return text.replace("outputs differ", f"output {found.output} differs", 1).replace("their standard", "its standard")


def figures_of(found: Fidelity) -> str:
    """Write the value with its interval."""
    estimate: Estimate = found.value
    low, high = (percent(end).removesuffix(" %") for end in (estimate.low, estimate.high))
    return f"{percent(estimate.value)} ({low} to {high})"
