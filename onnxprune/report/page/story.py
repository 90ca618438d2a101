"""From the documents of commands to what a report says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import PurePath
from typing import Any, cast, get_args

from onnxprune.errors import UsageError
from onnxprune.evaluation.fidelity import Answers, Fidelity
from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.documents import Document, plain
from onnxprune.report.layout import change, milliseconds, share, si
from onnxprune.report.outcome import figures_of, meaning, pace
from onnxprune.report.page.parts import Figure, Measured, Said, Story, Tone
from onnxprune.report.page.reading import (
    Fields,
    Stage,
    accuracies,
    estimate,
    factor,
    interval,
    metric_title,
    number,
    stages_of,
)
from onnxprune.report.page.sections import sections_of
from onnxprune.settings.evaluation import METRICS, higher_is_better
from onnxprune.settings.quantization import FORMS
from onnxprune.version import REPORTS, __version__
from onnxprune.workflow.gates import Gate

_PACES: dict[str, Tone] = {"faster": "good", "slower": "bad"}
_TONES: dict[str, Tone] = {"kept": "good", "partly kept": "warn", "not kept": "bad"}
_DONE = {
    "evaluate": "evaluated",
    "benchmark": "timed",
    "verify": "verified",
    "sensitivity": "measured",
    "prune": "pruned",
    "quantize": "quantized",
    "finetune": "trained",
    "shrink": "shrunk",
    "clean": "cleaned",
    "pack": "packed",
    "sparsify": "made sparse",
    "sweep": "swept",
}


def story(documents: Sequence[Document]) -> Story:
    """Return what a report says about a run.

    Args:
        documents: those of the commands that were run, in order. A field "stages" holds the parts of a run: each has a
            "stage", whether it was "kept", "why", "size" (bytes before and after) and "speed"; and the fields that a
            document of it would have, or these in "document".

    Raises:
        UsageError: a document isn't one of a command, or of another version (OP611).

    Examples:
        >>> document = {"version": 2, "report": "prune", "model": "a/net.onnx", "file_size": {"before": 4, "after": 1}}
        >>> told = story([document])
        >>> told.title, told.figures[0].change
        ('net.onnx', '-75.0 %')
    """
    checked = [_checked(plain(document)) for document in documents]
    if not checked:
        raise UsageError("OP611", "there is no document to report")
    try:
        return _story(stages_of(checked))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, OverflowError) as error:
        cause = f"a document lacks what its command writes: {type(error).__name__}: {error}"
        raise UsageError("OP611", " ".join(cause.split())[:200]) from error


def _checked(document: Any) -> Fields:
    hint = "write it with `form` json"
    if not isinstance(document, dict) or not isinstance(document.get("report"), str):
        raise UsageError("OP611", "this isn't the document of a command", hint=hint)
    if document.get("version") != REPORTS:
        cause = f"the document has version {document.get('version')}, and this is version {REPORTS}"
        raise UsageError("OP611", cause, hint="make it again with this version")
    return document


def _story(stages: Sequence[Stage]) -> Story:
    tops = [stage for stage in stages if stage.top]
    names = [
        str(s.get(key)) for s in tops for key in ("original", "against", "model", "pruned", "output") if s.get(key)
    ]
    names += [str(r["model"]) for s in tops for case in s.get("cases") or () for r in case["results"]]
    files = list(dict.fromkeys(PurePath(name).name for name in names)) or ["model"]
    words = list(dict.fromkeys(_DONE.get(stage.name, stage.name) for stage in tops))
    return Story(
        title=" → ".join(files[:2]),
        subtitle=", ".join(words).capitalize(),
        date=str(next((s.get("environment", "date") for s in stages if s.get("environment", "date")), "")),
        figures=tuple(_figures(stages)),
        verdicts=tuple(_verdicts(stages)),
        sections=sections_of(stages),
        measured=tuple(_measured(stages)),
        command=[[str(word) for word in stage.get("command")] for stage in tops if stage.get("command")],
        version=__version__,
    )


def _figures(stages: Sequence[Stage]) -> Iterator[Figure]:
    """Yield what matters most; a whole run's figures before those of its stages."""
    tops, inner = ([s for s in stages if s.top is top] for top in (True, False))
    order = [*tops, *inner]
    sizes = [s.sizes for s in tops if s.sizes] or [s.sizes for s in inner if s.sizes]
    if sizes:
        before, after = sizes[0]
        for start, end in sizes[1:]:
            after = end if start == after else after  # what one command wrote, the next one took
        yield _smaller("File", before, after, "B")
    costs = [stage.get("cost") for stage in order if stage.get("cost", "before")]
    if costs:
        yield _smaller("MACs", costs[0]["before"]["macs"], costs[0]["after"]["macs"], "")
    for stage in [*reversed(tops), *reversed(inner)]:
        if (speed := _speed(stage)) is not None:
            yield speed
            break
    for measured in sorted(accuracies(order), key=lambda a: a.what == "before training"):
        if (score := measured.first) is not None:
            yield _answers(score, measured.samples)
            break


def _smaller(title: str, before: int, after: int, unit: str) -> Figure:
    tone: Tone = "good" if after < before else "plain" if after == before else "bad"
    left = share(after, before)
    return Figure(title, si(before, unit), si(after, unit), change(before, after), "", left, tone)


def _speed(stage: Stage) -> Figure | None:
    found = stage.speed
    if found:
        times, faster, provider = (found["before"], found["after"]), estimate(found["speedup"]), found["provider"]
    else:
        cases = stage.get("cases") or ()
        if not cases or len(cases[0]["results"]) < 2:
            return None
        first, *_, last = cases[0]["results"]
        times = first["latency"]["median"], last["latency"]["median"]
        faster, provider = estimate(last["speedup"]), cases[0]["provider"]
    if faster is None:
        return None
    words = pace(faster, *times)
    tone: Tone = _PACES.get(words, "plain")
    before, after = map(milliseconds, times)
    note = f"{words}: {faster.low:.2f} to {faster.high:.2f}, on {provider}"
    return Figure("Latency", before, after, f"{faster.value:.2f}x", note, share(times[1], times[0]), tone)


def _answers(score: Fields, samples: int) -> Figure:
    model, original, less = (estimate(score[key]) for key in ("model", "original", "difference"))
    assert model is not None
    own = score["share"]
    before = "" if original is None else number(original.value, own)
    note = "" if less is None else f"change {interval(less, own, '+')}; "
    note = f"{note}value {interval(model, own)}; {samples:,} samples"
    tone: Tone = "plain"
    if less is not None:
        better = higher_is_better(score["metric"]) if score["metric"] in METRICS else True
        low, high = (less.low, less.high) if better else (-less.high, -less.low)
        tone = "bad" if high < 0 else "good" if low > 0 else "plain"
    moved = "" if less is None else number(less.value, own, "+")
    title = metric_title(score)
    return Figure(title[:1].upper() + title[1:], before, number(model.value, own), moved, note, None, tone)


def _verdicts(stages: Sequence[Stage]) -> Iterator[Said]:
    for stage in stages:
        if stage.name == "error":
            code = f" ({stage.get('code')})" if stage.get("code") else ""
            yield Said(f"Failed: {stage.get('cause')}{code}.", "bad")
        if "verification" in stage.found and "interface_changes" in stage.found:
            yield from _proof(stage)
        for fields in stage.get("gates") or ():
            found = estimate(fields["found"])
            assert found is not None
            gate = Gate(fields["name"], fields["bound"], fields["limit"], found, fields["unit"])
            tone: Tone = "bad" if not gate.held else "good" if gate.decided else "warn"
            yield Said(f"{'Held' if gate.held else 'Missed'}: {gate}.", tone)
        for text in stage.get("missed") or ():
            yield Said(f"Missed: {text}.", "bad")
        if stage.get("kept") == []:
            yield Said("No stage pays: the model is best left as it is.", "warn")
        faster = estimate((stage.speed or {}).get("speedup")) if stage.top else None
        if stage.top and stage.speed and faster is not None:
            words = pace(faster, stage.speed["before"], stage.speed["after"])
            tone = "good" if words == "faster" else "warn"
            yield Said(f"{words.capitalize()}: {factor(faster)} on {stage.speed['provider']}.", tone)
        yield from _kept(stage)
        if stage.top and (drop := estimate(stage.get("drop"))) is not None and isfinite(drop.value):
            yield _drop(drop, stage.get("allowed") or {})
        if stage.top and (best := stage.get("best")) and "kind" in best:
            speed = estimate(best["speedup"])
            tone = "good" if speed is None or speed.low > 1 else "warn"
            form = f"{best['kind']} ({FORMS.get(best['kind'], 'another form')})"
            yield Said(f"Quantized: {form}" + (f", {factor(speed)} as fast." if speed else "."), tone)
        if stage.get("kept") in ("before", "after"):
            trained = stage.get("kept") == "after"
            text = "The trained model is kept." if trained else "Training brought nothing: the model is as it was."
            yield Said(text, "good" if trained else "warn")
        for note in stage.get("doubts") or ():
            yield Said(f"{note[:1].upper()}{note[1:]}.", "warn")


def _drop(drop: Estimate, allowed: Fields) -> Said:
    """Say what was lost, and whether that is within what is allowed."""
    facts, most = METRICS.get(allowed.get("metric", "")), allowed.get("drop")
    form = ".2%" if facts is None or facts.share else ".2g"
    low, value, high = (f"{v:z{form}}" for v in (drop.low, drop.value, drop.high))
    title = "" if facts is None else f" in {facts.title}"
    text = f"Drop{title} {value} ({low} to {high}) on samples that chose nothing"
    if most is None:
        return Said(f"{text}.")
    tone: Tone = "good" if drop.high <= most else "warn" if drop.low <= most else "bad"
    certain = "" if drop.high <= most else "; more samples may decide otherwise" if drop.low <= most else ""
    return Said(f"{text}; {most:{form}} is allowed{certain}.", tone)


def _proof(stage: Stage) -> Iterator[Said]:
    proof, agree = stage.get("verification"), stage.get("agree")
    for text in stage.get("interface_changes"):
        yield Said(f"The interface changed: {text}.", "bad")
    if proof:
        part = " in part" if proof["unproved"] else ""
        error = "not finite" if proof["error"] is None else f"{proof['error']:.2g}"
        figures = f"error {error}, allowed {proof['tolerance']:.2g}"
        words = f"Rewriting proved{part}" if proof["passed"] else "The rewriting is not right"
        yield Said(f"{words}: {figures}.", "bad" if not proof["passed"] else "warn" if part else "good")
    elif agree is not None:
        words = "The outputs agree" if agree else "The outputs differ"
        yield Said(f"{words}; nothing is proved.", "warn" if agree else "bad")
    elif not stage.get("interface_changes"):
        yield Said("Not proved: the proof was skipped.", "warn")
    weights = stage.get("weights")
    if weights and not weights["passed"]:
        yield Said("Weights were changed since a repair or training left them.", "bad")


def _kept(stage: Stage) -> Iterator[Said]:
    found = stage.get("outcome")
    if not found:
        return
    if found["unchanged"]:
        yield Said("Nothing was removed: the model computes the same.", "good")
        return
    judged, close = found["judged"], None if found["fidelity"] is None else _fidelity(found["fidelity"])
    said = f"not compared ({found['uncompared']})" if close is None else meaning(close, figures_of(close), judged)
    if judged == "generated":
        yield Said(f"Accuracy not kept: no data were given; {said}.", "bad")
    elif close is None:
        yield Said(f"Answers {said}.", "warn")
    else:
        yield Said(f"Answers {close.answers}: {said}.", _TONES[close.answers])
        if found.get("overfitted"):
            own = _fidelity(found["calibrated"])
            said = meaning(own, figures_of(own), "calibration")
            yield Said(f"The repair doesn't generalize: {said}. More samples would help.", "warn")


def _fidelity(fields: Fields) -> Fidelity:
    assert fields["answers"] in get_args(Answers)
    value = cast(Estimate, estimate(fields["value"]))
    names = (fields["metric"], fields["output"], value, fields["samples"], fields["answers"], fields["task"])
    return Fidelity(*names)


def _measured(stages: Sequence[Stage]) -> Iterator[Measured]:
    for found in accuracies(stages):
        if found.what == "before training":
            continue
        for score in found.scores:
            value = estimate(score["model"])
            if value is not None and isfinite(value.value):
                ends = value.value, value.low, value.high
                own = metric_title(score), *ends, found.samples, found.task, found.data
                yield Measured(score["metric"], *own)
