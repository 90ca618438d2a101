"""Tables of a pipeline: what stages are expected to bring, what they brought, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from onnxprune.benchmarking.speed import Speed
from onnxprune.evaluation.fidelity import fidelity
from onnxprune.progress import duration
from onnxprune.report.checks import Check
from onnxprune.report.cleaning import cleaning_fields
from onnxprune.report.documents import plain
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Tables,
    change,
    count,
    flexible,
    heading,
    left,
    line,
    paragraph,
    right,
    si,
    table,
)
from onnxprune.report.outcome import outcome_tables
from onnxprune.report.pruning import changed, pruning_fields
from onnxprune.report.quantization import quantization_fields
from onnxprune.report.summary import summarize
from onnxprune.settings.evaluation import METRICS
from onnxprune.workflow.cleaning import Cleaned
from onnxprune.workflow.elsewhere import Elsewhere
from onnxprune.workflow.outcome import Outcome
from onnxprune.workflow.prune_model import PruneResult
from onnxprune.workflow.quantizing import Quantized
from onnxprune.workflow.stages import STAGES, Expected
from onnxprune.workflow.verdicts import ShrinkResult, Verdict


def stage_fields(found: Cleaned | PruneResult | Quantized) -> dict[str, Any]:
    """Return what a document contains of a stage's own result, as JSON has it."""
    match found:
        case Cleaned():
            made = cleaning_fields(found)
        case Quantized():
            made = quantization_fields(found)
        case _:
            made = pruning_fields(found, changed(found), summarize(found.analysis.graph))
    fields: dict[str, Any] = plain(made)
    return fields


def expected_tables(expected: Sequence[Expected], notes: Sequence[str] = ()) -> Tables:
    """Show what stages are expected to bring."""
    rows = [
        (
            e.stage,
            "" if e.size is None or e.skipped else si(e.size, "B"),
            "" if e.skipped else f"about {duration(e.seconds)}",
            (e.skipped and f"left out: {e.skipped}") or e.what,
        )
        for e in expected
    ]
    total = sum(e.seconds for e in expected if not e.skipped)
    yield heading("stages", f"estimates, each alone; about {duration(total)} in all")
    yield table(left("stage") + right("file", "takes") + flexible("what"), rows)
    for note in notes:
        yield paragraph(note, FAINT)


def verdict_tables(result: ShrinkResult) -> Tables:
    """Show what each stage brought, and whether it was kept."""
    rows = [
        (v.stage, line(("kept", GOOD) if v.kept else ("left out", CODE)), *_figures(v), v.why) for v in result.verdicts
    ]
    allowed = ""
    if result.allowed is not None:
        limit = f"{result.allowed:.2%}" if METRICS[result.metric].share else f"{result.allowed:.2g}"
        allowed = f"{METRICS[result.metric].title} may drop by {limit} in all"
    yield heading("stages", allowed)
    columns = left("stage", "verdict") + right("file", "change", "speed") + right("drop", "takes") + flexible("what")
    yield table(columns, rows)
    if result.basis and result.basis != "asked for":
        yield paragraph(f"Nothing was asked for: the drop allowed is {result.basis}.", FAINT)
    if result.samples is not None:
        work, deciding, judging = result.samples
        yield paragraph(
            f"Stages worked with {work:,} samples, {deciding:,} decided what is kept, and {judging:,} others judged "
            "the result, once. Speeds and sizes are relative to the stage before.",
            FAINT,
        )
    for note in result.notes:
        yield paragraph(note, FAINT)


def result_tables(result: ShrinkResult) -> Tables:
    """Show in two lines what came out."""
    if not result.kept:
        yield paragraph(line(("nothing pays", BAD), ": no stage is kept, the model is best left as it is"))
        return
    yield from outcome_tables(brought(result), result.size)
    for other in result.also:
        yield paragraph(f"on {other.provider}: {_elsewhere(other)}")
    for missed in result.missed:
        yield paragraph(line(("missed", BAD), f": {missed}"))


def brought(result: ShrinkResult) -> Outcome:
    """Return what a run brought, in the terms of `onnxprune prune`."""
    lossy = {stage.name for stage in STAGES if stage.lossy}
    return Outcome(
        speed=result.speed,
        untimed=result.untimed,
        fidelity=None if result.evaluation is None else fidelity(result.evaluation),
        uncompared="there are no samples" if result.evaluation is None else "",
        judged="generated" if result.evaluation is None else "held out",
        unchanged=lossy.isdisjoint(result.kept),
        fitted="prune" in result.kept,
        trained=False,
        layers=result.layers,
    )


def _elsewhere(other: Elsewhere) -> str:
    """Tell how a result does on another provider."""
    if other.failure:
        return f"not run: {other.failure}"
    speed = "" if other.speed is None else f"{other.speed.speedup.value:.2f}x as fast as the file there; "
    same = "" if other.agreement is None else f"same top class as on the CPU on {other.agreement:.1%}, "
    apart = f"outputs differ from the CPU's by at most {other.difference:.2g} of their largest value"
    return f"{speed}{same}{apart}, on {count(other.samples, 'sample')}"


def verdict_checks(result: ShrinkResult) -> tuple[Check, ...]:
    """Return the limits as checks, and each stage that was kept."""
    stages = [Check(f"stage {v.stage}", True, f"{'kept' if v.kept else 'left out'}: {v.why}") for v in result.verdicts]
    missed = [Check("limit", False, text) for text in result.missed]
    return (*stages, *(missed or [Check("limits", True, "all limits are met")]))


def _figures(verdict: Verdict) -> tuple[str, ...]:
    size, speed, loss = verdict.size, verdict.speed, verdict.drop
    return (
        "" if size is None else si(size[1], "B"),
        "" if size is None else change(*size),
        _speed(speed),
        "" if loss is None or not isfinite(loss.value) else f"{loss.value:z.2%}",
        duration(verdict.seconds) if verdict.seconds >= 0.5 else "",
    )


def _speed(speed: Speed | None) -> str:
    return "" if speed is None else f"{speed.speedup.value:.2f}x"
