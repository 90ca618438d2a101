"""What a plan removes: the widths of groups before and after, and the trials of a search for the smallest model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.plot.figure import AFTER, BEFORE, ROWS, drawn, left_out, rows
from onnxprune.report.labels import Labels
from onnxprune.report.summary import GroupChange

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 12.0  # of the trials, in rows


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The trials of a search for the smallest model within a drop.

    Attributes:
        cost: the cost that was searched, in words.
        metric: the metric that the drop is measured in, in words.
        trials: for each its share of the original's cost, its drop, which is infinite if it couldn't be reached, and
            whether it was accepted.
        limit: the drop allowed.
        share: whether drops are shares, shown in percentage points.
    """

    cost: str
    metric: str
    trials: Sequence[tuple[float, float, bool]]
    limit: float
    share: bool = True


def plot_widths(changes: Sequence[GroupChange], labels: Labels, path: Path, trade_off: TradeOff | None = None) -> None:
    """Plot the number of units that each group keeps, and the trials of the search that chose them, if there was one.

    Raises:
        UsageError: matplotlib isn't installed (OP605).
        ModelError: the file can't be written (OP117).
    """
    most = sorted(changes, key=lambda c: -c.removed)[:ROWS]
    shown = sorted(most, key=lambda c: c.group.index)
    heights = [*([_HEIGHT] if trade_off else []), float(len(shown))]
    with drawn(path, heights) as (_, parts):
        if trade_off:
            _trials(parts[0], trade_off)
        axes = parts[-1]
        before = [len(change.group.units) for change in shown]
        axes.barh(range(len(shown)), before, color=BEFORE, label="before")
        axes.barh(range(len(shown)), [change.kept for change in shown], color=AFTER, label="after")
        for row, change in enumerate(shown):
            size, kept = len(change.group.units), change.kept
            text = f" {size:,} → {kept:,}" if kept != size else f" {size:,}"
            axes.text(size, row, text, va="center", fontsize="small", clip_on=False)
        rows(axes, [change.group.name for change in shown], labels)
        removed, units = sum(c.removed for c in changes), sum(len(c.group.units) for c in changes)
        share = removed / units if units else 0.0
        title = f"widths of {len(changes)} groups: {share:.1%} of the units removed"
        axes.set_title(title + left_out(len(changes), len(shown), "most changed"), loc="left")
        axes.set_xlabel("units (channels, heads, ...)")
        axes.set_xlim(0, 1.15 * max(before, default=1))
        axes.legend(loc="upper right", frameon=False)


def _trials(axes: Axes, found: TradeOff) -> None:
    scale, unit = (100, "percentage points") if found.share else (1, "absolute")
    known = sorted((100 * cost, scale * loss, good) for cost, loss, good in found.trials if isfinite(cost + loss))
    points = [(x, y) for x, y, _ in known]
    good, bad = ([(x, y) for x, y, accepted in known if accepted is wanted] for wanted in (True, False))
    axes.plot(*zip((100.0, 0.0), *points[::-1], strict=True), color=BEFORE, zorder=1)
    for part, color, name in ((good, AFTER, "accepted"), (bad, "#c0504d", "refused")):
        if part:
            axes.scatter(*zip(*part, strict=True), color=color, label=name, zorder=2)
    if good:
        axes.annotate("chosen", min(good), xytext=(0, -14), textcoords="offset points", ha="center")
    axes.axhline(scale * found.limit, color="black", linewidth=0.8, linestyle="--", label="drop allowed")
    axes.set_xlabel(f"{found.cost}, share of the original's [%]")
    axes.set_ylabel(f"drop in {found.metric} [{unit}]")
    axes.set_title(f"trade-off: {len(found.trials)} trials", loc="left")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
