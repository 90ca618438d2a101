"""Sensitivities as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from onnxprune.errors import ModelError, UsageError
from onnxprune.report.labels import Labels
from onnxprune.report.layout import FAINT, Rows, Tables, count, flexible, heading, paragraph, right, table
from onnxprune.sensitivity import Curve
from onnxprune.trace.graph import ChannelGraph

_NAMED = 12  # most curves of a plot with a legend
_INCHES = (8.0, 5.0)


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
        (labels.name(graph.groups[c.group].name), str(len(c.order)), *(_error(_nearest(c, share)) for share in shares))
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


def plot_sensitivity(graph: ChannelGraph, curves: Sequence[Curve], path: Path, measure: str) -> None:
    """Plot the curves of all groups to a file, later groups in lighter colors.

    Raises:
        UsageError: matplotlib isn't installed (OP605).
        ModelError: the file can't be written (OP117).
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("OP605", "a plot needs matplotlib", hint="pip install 'onnxprune[plot]'") from error
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot(xlabel="share of the group's units removed", ylabel=measure, title="sensitivity")
    smallest = min((p.error for c in curves for p in c.points if p.error > 0), default=1e-6)
    axes.set_yscale("symlog", linthresh=smallest)
    shades = np.linspace(0.0, 0.9, max(len(curves), 1))
    for curve, shade in zip(curves, shades, strict=False):
        points = [(0.0, 0.0), *((p.removed / len(curve.order), p.error) for p in curve.points if isfinite(p.error))]
        label = graph.groups[curve.group].name
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colormaps["viridis"](shade), label=label)
    if len(curves) <= _NAMED:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ModelError("OP117", f"can't write the plot: {error}", where=str(path)) from error


def _nearest(curve: Curve, share: float) -> float:
    return min(curve.points, key=lambda p: abs(p.removed - share * len(curve.order))).error


def _error(value: float) -> str:
    return f"{value + 0.0:.2g}" if isfinite(value) else "not finite"
