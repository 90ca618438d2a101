"""Tables and fields of packing: what a file's bytes hold, and which weights share values."""

from __future__ import annotations

from typing import Any

from onnxprune.report.documents import pick
from onnxprune.report.layout import FAINT, Tables, change, count, flexible, heading, left, paragraph, right, si, table
from onnxprune.workflow.packing import Packed, Unpacked

_HOLDS = {
    "bytes": "the graph, as it is",
    "mask": "which weights are zero",
    "table": "codebooks",
    "index": "which value of a codebook",
    "number": "numbers",
}
_SHOWN = 8  # codebooks in a table


def packing_fields(found: Packed) -> dict[str, Any]:
    """Return what a document contains of a packing."""
    return {
        "file_size": dict(zip(("before", "after"), found.size, strict=True)),
        "streams": found.streams,
        "clusters": [pick(book, "tensor", "values", "error", "trained") for book in found.clusters],
        "samples": dict(zip(("clusters", "judged"), found.samples, strict=True)),
        "evaluation": found.evaluation,
    }


def packing_tables(found: Packed) -> Tables:
    """Show what became of the bytes, and the codebooks that lose most."""
    before, after = found.size
    yield heading("packing", f"{si(before, 'B')} → {si(after, 'B')}, 1/{before / after:.1f}")
    if found.streams:
        rows = [(_HOLDS[kind], si(size, "B"), f"{size / after:.0%}") for kind, size in sorted(found.streams.items())]
        yield table(flexible("") + right("bytes", "share"), rows)
    if found.clusters:
        worst = sorted(found.clusters, key=lambda book: -book.error)[:_SHOWN]
        more = f", the {_SHOWN} that change most" if len(found.clusters) > _SHOWN else ""
        yield heading("shared values", f"{count(len(found.clusters), 'tensor')}{more}")
        yield table(
            flexible("weights") + right("values", "error"),
            ((book.tensor, f"{book.values}", f"{book.error:.2g}") for book in worst),
        )
        yield paragraph("The error is that of the weights: squared, of their mean square.", FAINT)
        if found.evaluation is None:
            yield paragraph("Without `data`, weights are rounded as they are, and nothing says what that loses.", FAINT)


def unpacking_fields(found: Unpacked) -> dict[str, Any]:
    """Return what a document contains of an unpacking."""
    return {"files": found.files, "file_size": dict(zip(("before", "after"), found.size, strict=True))}


def unpacking_tables(found: Unpacked) -> Tables:
    """Show what became of the bytes."""
    before, after = found.size
    yield heading("unpacking", f"{si(before, 'B')} → {si(after, 'B')}, {change(before, after)}")
    yield table(flexible("file") + left(""), ((str(file), "") for file in found.files))
