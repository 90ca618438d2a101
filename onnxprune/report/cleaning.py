"""Tables and fields of cleaning: what optimizers made of a model, and what was taken."""

from __future__ import annotations

from math import isfinite
from typing import Any

from onnxprune.report.documents import pick
from onnxprune.report.layout import FAINT, Tables, change, flexible, heading, left, paragraph, right, si, table
from onnxprune.workflow.cleaning import NORMALIZED, Cleaned, Cleaner


def _cleaner(found: Cleaner) -> dict[str, Any]:
    return pick(found, "name", "nodes", "size", "speedup", "failure", "error")


def cleaning_fields(found: Cleaned) -> dict[str, Any]:
    """Return what a document contains of a cleaning."""
    return {
        "before": _cleaner(found.before),
        "best": None if found.best is None else _cleaner(found.best),
        "tried": [_cleaner(each) for each in found.tried],
        "compared": {"inputs": found.draws, "tolerance": found.tolerance},
        "missing": found.missing,
    }


def cleaning_tables(found: Cleaned) -> Tables:
    """Show what was tried, and what was taken."""
    file = found.before
    yield heading("cleaning", f"the file has {file.nodes:,} nodes and {si(file.size, 'B')}")
    columns = left("by") + right("nodes", "change", "file", "change", "error", "speed") + flexible("", "remark")
    rows = [(t.name, *_figures(t, found), "taken" if t is found.best else t.failure or "") for t in found.tried]
    yield table(columns, rows)
    inputs = "one set of inputs" if found.draws == 1 else f"{found.draws} sets of inputs, of different sizes"
    yield paragraph(
        f"Outputs are compared with the file's on {inputs}; errors up to {found.tolerance:g} of the largest value are "
        f"rounding. Speeds are relative to the file, measured in turns. {NORMALIZED} is what every model written goes "
        "through.",
        FAINT,
    )
    if found.missing:
        names = ", ".join(found.missing)
        yield paragraph(f"Not installed: {names}. `pip install 'onnxprune[clean]'` adds it.", FAINT)


def _figures(each: Cleaner, found: Cleaned) -> tuple[str, ...]:
    if not isfinite(each.error):
        return ("",) * 7
    speed = each.speedup
    return (
        f"{each.nodes:,}",
        change(found.before.nodes, each.nodes),
        si(each.size, "B"),
        change(found.before.size, each.size),
        f"{each.error:.1e}" if each.error else "0",
        *(("", "") if speed is None else (f"{speed.value:.2f}x", f"{speed.low:.2f} to {speed.high:.2f}")),
    )
