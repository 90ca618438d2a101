"""Tables of the cache of measured layers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from onnxprune.latency.table import CachedTable
from onnxprune.report.layout import Tables, count, flexible, heading, left, paragraph, right, si, table


def cache_tables(folder: Path, found: Sequence[CachedTable], action: str) -> Tables:
    """Show tables of the cache, or that they were deleted."""
    total = si(sum(t.bytes for t in found), "B")
    if action == "clear":
        yield paragraph(f"deleted {count(len(found), 'table')}, {total}, from {folder}", indent=0)
        return
    yield heading(f"{count(len(found), 'table')} of layer times, {total}", str(folder))
    rows = (
        (
            t.path.stem[:8],
            str(t.key.get("provider", "?")).removesuffix("ExecutionProvider").lower(),
            "all" if t.key.get("threads") is None else str(t.key["threads"]),
            f"{t.layers:,}",
            f"{t.noisy:,}",
            "-" if t.date is None else datetime.fromtimestamp(t.date, UTC).strftime("%Y-%m-%d"),
            "stale" if t.stale else "",
            ", ".join([str(t.key.get("onnxruntime", "another version")), *map(str, t.key.get("hardware", ())[:1])]),
        )
        for t in found
    )
    if found:
        columns = left("", "provider") + right("threads", "layers", "noisy") + left("latest", "")
        yield table(columns + flexible("ONNX Runtime, processor"), rows)
        yield paragraph(
            "Noisy times were disturbed by other processes, and are measured again when they are needed. Stale tables"
            " are of another machine, ONNX Runtime or version of this tool, and never used here."
        )
