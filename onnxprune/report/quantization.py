"""Tables and fields of a quantization: what was tried, and what was kept."""

from __future__ import annotations

from math import isfinite
from typing import Any

from onnxprune.quantization.search import Found, Trial
from onnxprune.report.documents import pick
from onnxprune.report.layout import FAINT, Tables, change, flexible, heading, left, paragraph, right, si, table
from onnxprune.workflow.quantizing import Quantized


def quantization_fields(result: Quantized) -> dict[str, Any]:
    """Return what a document contains of a quantization."""
    return {
        "best": _form(result.best),
        "trials": [_form(trial) for trial in result.found.trials],
        "allowed": {"error": result.found.allowed, "why": result.found.why},
        "samples": dict(zip(("ranges", "choice", "judged"), result.samples, strict=True)),
    }


def _form(trial: Trial) -> dict[str, Any]:
    return pick(trial, "kind", "size", "kept", "about", "speedup", "failure", "error")


def quantization_tables(found: Found, size: int) -> Tables:
    """Show what was tried.

    Args:
        found: the search's result.
        size: bytes of the original.
    """
    yield heading("forms tried", f"error allowed: {found.allowed:.2g} of the variance of the outputs")
    columns = left("kind") + right("size", "change", "error", "speed") + flexible("", "remark")
    rows = [
        (
            t.kind,
            "" if t.failure else si(t.size, "B"),
            "" if t.failure else change(size, t.size),
            f"{t.error:.2g}" if isfinite(t.error) and not t.failure else "",
            "" if t.speedup is None else f"{t.speedup.value:.2f}x",
            "" if t.speedup is None else f"{t.speedup.low:.2f} to {t.speedup.high:.2f}",
            _remark(t, found),
        )
        for t in found.trials
    ]
    yield table(columns, rows)
    yield paragraph(f"The error allowed is {found.why}. Speeds are relative to the model, measured in turns.", FAINT)


def _remark(trial: Trial, found: Found) -> str:
    if trial.failure is not None:
        return trial.failure
    words = [f"{name} {value}" for name, value in trial.about.items()]
    if trial.kept:
        words.append(f"{len(trial.kept)} in float")
    if trial is found.best:
        words.insert(0, "kept")
    elif trial.error > found.allowed:
        words.insert(0, "error too large")
    return ", ".join(words)
