"""The sections of a report. Each takes what it shows from the fields of documents, whichever command wrote them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence

from onnxprune.report.layout import count
from onnxprune.report.page.layers import layers, stayed
from onnxprune.report.page.measured import accuracy, costs, latencies, proofs
from onnxprune.report.page.parts import Code, Grid, Part, Row, Section
from onnxprune.report.page.reading import Stage, named
from onnxprune.report.page.tried import disagreements, sensitivities, trade_offs, tried

_UNASKED = ("output", "recipe", "report", "card", "force", "format", "quiet", "against", "teacher")
_FILES = {
    **{"model": "model", "original": "original", "pruned": "pruned", "against": "compared with", "teacher": "teacher"},
    **{"output": "written to", "recipe": "recipe"},
}

Read = Callable[[Sequence[Stage]], Iterator[Part]]


def sections_of(stages: Sequence[Stage]) -> tuple[Section, ...]:
    """Return the sections that have something to show."""
    made = ((key, title, lead, tuple(read(stages))) for key, title, lead, read in _SECTIONS)
    return tuple(Section(key, title, lead, parts) for key, title, lead, parts in made if parts)


def _asked(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in (stage for stage in stages if stage.top):
        rows: list[Row] = [
            (title, str(stage.get(name))) for name, title in _FILES.items() if stage.get(name) is not None
        ]
        given = stage.get("options") or {}
        timed = dict.fromkeys(str(r["model"]) for case in stage.get("cases") or () for r in case["results"])
        rows += [("models", ", ".join(timed))] if timed else []
        rows += [(str(name), str(value)) for name, value in given.items() if name not in _UNASKED]
        if rows:
            yield Grid(f"Files and options of {stage.name}", ("", "as given"), rows)


def _environment(stages: Sequence[Stage]) -> Iterator[Part]:
    found = next((stage.get("environment") for stage in stages if stage.get("environment")), None)
    if not found:
        return
    providers = [str(p) for stage in stages for p in stage.get("providers") or ()]
    providers += [str(case["provider"]) for stage in stages for case in stage.get("cases") or ()]
    providers += [str(stage.speed["provider"]) for stage in stages if stage.speed]
    threads = [str(stage.get("options", "threads") or "") for stage in stages]
    rows = [
        ("processor", f"{found['cpu']}, {count(found['cores'], 'core')}"),
        ("GPU", "; ".join(found["gpus"])),
        ("execution provider", ", ".join(dict.fromkeys(filter(None, providers)))),
        ("threads", ", ".join(dict.fromkeys(filter(None, threads))) or "ONNX Runtime's default"),
        ("load", "unknown" if found["load"] is None else str(found["load"])),
        ("clock governor", found["governor"] or "unknown"),
        ("system", found["system"]),
        ("ONNX Runtime", found["onnxruntime"]),
        ("Python", found["python"]),
        *found["packages"].items(),
    ]
    yield Grid("Machine and versions", ("", "as found"), [(name, str(value)) for name, value in rows if value])


def _reproduce(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in (stage for stage in stages if stage.top):
        if words := stage.get("command"):
            yield Code(_lines([str(word) for word in words]))
        digests = {"model, SHA-256": stage.get("model_sha256"), "plan": stage.get("plan_digest")}
        if rows := [(title, str(digest)) for title, digest in digests.items() if digest]:
            yield Grid(named("Fingerprints", stage, stages), ("", "digest"), rows)


def _lines(words: Sequence[str]) -> list[str]:
    """Return a command line with an option in each line."""
    lines = [""]
    for word in words:
        if word.startswith("-") and len(word) > 1:
            lines.append("")
        lines[-1] = f"{lines[-1]} {shlex.quote(word)}".strip()
    return lines


_SECTIONS: Sequence[tuple[str, str, str, Read]] = (
    ("asked", "What was asked", "The models, the data and the options, as they were given.", _asked),
    ("front", "Trade-offs", "Every point is a model; those of the front are beaten by no other one.", trade_offs),
    ("costs", "Size and cost", "What the model is made of, before and after.", costs),
    ("latency", "Latency", "Median times of a run, measured on the machine described below.", latencies),
    (
        "accuracy",
        "Accuracy",
        "How good the answers are, on the same samples for both models. Gray is the original.",
        accuracy,
    ),
    ("proofs", "Proof and limits", "What was checked, and against which limit.", proofs),
    ("stages", "Steps and trials", "What was tried, and what each step brought.", tried),
    ("layers", "Layer by layer", "Every layer with weights, in the order of the graph.", layers),
    ("stayed", "What stayed, and why", "What could not be removed, repaired, trained, proved or rounded.", stayed),
    ("examples", "Where the models disagree", "Samples on which the answers differ most.", disagreements),
    ("sensitivity", "Sensitivity", "How much the outputs change when units of one group leave.", sensitivities),
    ("environment", "Environment", "Times are comparable only on equal hardware.", _environment),
    ("reproduce", "How to get this again", "The same command on the same files gives the same model.", _reproduce),
)
