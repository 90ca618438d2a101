"""Sensitivities: curves of a few groups, a heat map of many."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.plot.figure import ROWS, drawn, left_out, named
from onnxprune.report.labels import Labels
from onnxprune.report.sensitivity import nearest
from onnxprune.sensitivity import Curve
from onnxprune.trace.graph import ChannelGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = 12  # most groups whose curves can be told apart
_HEIGHT = 16.0  # of curves, in rows
_DARK = 0.6  # of the color scale; numbers on darker cells are white


def plot_sensitivity(
    graph: ChannelGraph, curves: Sequence[Curve], shares: Sequence[float], path: Path, measure: str
) -> None:
    """Plot the errors of pruning each group alone: a curve each, or a heat map beyond 12 groups.

    Args:
        graph: the traced model.
        curves: of its groups.
        shares: the columns of a heat map; each shows the nearest point that was measured.
        path: the file.
        measure: what the errors are, in words.

    Raises:
        UsageError: matplotlib isn't installed (OP605).
        ModelError: the file can't be written (OP117).
    """
    labels = Labels.of(graph.proto)
    few = len(curves) <= _CURVES
    shown = curves if few else sorted(sorted(curves, key=lambda c: -_worst(c))[:ROWS], key=lambda c: c.group)
    with drawn(path, [_HEIGHT if few else len(shown)]) as (figure, (axes,)):
        title = f"sensitivity of {len(curves)} groups, each pruned alone"
        axes.set_title(title + left_out(len(curves), len(shown), "most sensitive"), loc="left")
        axes.set_xlabel("share of the group's units removed [%]")
        if few:
            _lines(axes, graph, shown, labels, measure)
        else:
            _heat(figure, axes, graph, shown, shares, labels, measure)


def _lines(axes: Axes, graph: ChannelGraph, curves: Sequence[Curve], labels: Labels, measure: str) -> None:
    from matplotlib import colormaps

    smallest = min((p.error for c in curves for p in c.points if p.error > 0), default=1e-6)
    axes.set_yscale("symlog", linthresh=smallest)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(measure)
    for i, curve in enumerate(curves):
        found = ((100 * p.removed / len(curve.order), p.error) for p in curve.points if isfinite(p.error))
        x, y = zip((0.0, 0.0), *found, strict=True)
        name = named(labels, graph.groups[curve.group].name)
        color = colormaps["viridis"](i / len(curves))
        axes.plot(x, y, marker="os^D"[i % 4], markersize=4, color=color, label=name)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.grid(alpha=0.3)


def _heat(
    figure: Figure,
    axes: Axes,
    graph: ChannelGraph,
    curves: Sequence[Curve],
    shares: Sequence[float],
    labels: Labels,
    measure: str,
) -> None:
    from matplotlib.colors import LogNorm

    values = np.array([[nearest(curve, share) for share in shares] for curve in curves])
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (known.min(), known.max()) if known.size else (1e-6, 1.0)
    norm = LogNorm(low, max(high, 1.01 * low))
    colored = np.where(np.isfinite(values), np.clip(values, low, high), high)
    image = axes.imshow(colored, aspect="auto", cmap="Blues", norm=norm)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        color = "white" if norm(colored[row, column]) > _DARK else "black"
        text = f"{value:.2g}" if np.isfinite(value) else "not finite"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
    axes.set_xticks(range(len(shares)), [f"{100 * s:.3g}" if s < 1 else "most allowed" for s in shares])
    axes.set_yticks(range(len(curves)), [named(labels, graph.groups[c.group].name) for c in curves])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=measure, aspect=40, format="{x:g}")


def _worst(curve: Curve) -> float:
    return max((p.error if isfinite(p.error) else np.inf for p in curve.points), default=0.0)
