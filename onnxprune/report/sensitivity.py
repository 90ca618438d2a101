"""Sensitivities as a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from onnxprune.report.labels import Labels
from onnxprune.report.layout import FAINT, Rows, Tables, count, flexible, heading, paragraph, right, table
from onnxprune.sensitivity import Curve
from onnxprune.trace.graph import ChannelGraph


def sensitivity_tables(graph: ChannelGraph, curves: Sequence[Curve], shares: Sequence[float], measure: str) -> Tables:
    """Show the error that removing a share of each group's units causes.

    Args:
        graph: the traced model.
        curves: of its groups, in the order of the rows.
        shares: the columns; each shows the nearest point that was measured.
        measure: what the errors are, in words.
    """
    titles = (f"-{share:.0%}" if share < 1 else "most" for share in shares)
    labels = Labels.of(graph.proto)
    rows: Rows = (
        (labels.name(graph.groups[c.group].name), str(len(c.order)), *(_error(nearest(c, share)) for share in shares))
        for c in curves
    )
    yield from labels.note()
    yield heading("sensitivity", f"{count(len(curves), 'group')}, each pruned alone")
    yield table(flexible("group") + right("units", *titles), rows)
    yield paragraph(
        f"{measure} with a share of the group's units removed, the least important first, and the layers that read "
        "them refitted. Shares are rounded to what the constraints allow.",
        FAINT,
    )


def nearest(curve: Curve, share: float) -> float:
    """Return the error at the point of a curve that is nearest to a share of units removed."""
    return min(curve.points, key=lambda p: abs(p.removed - share * len(curve.order))).error


def _error(value: float) -> str:
    return f"{value + 0.0:.2g}" if isfinite(value) else "not finite"
