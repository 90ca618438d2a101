"""The time of layers before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.plot.figure import AFTER, BEFORE, drawn, left_out, rows
from onnxprune.report.labels import Labels

_SLOWEST = 40


def plot_layers(changes: Sequence[LayerChange], names: tuple[str, str], where: str, path: Path) -> None:
    """Plot the time of the slowest layers of two models.

    Args:
        changes: their layers.
        names: the models' names, the first one that of the original.
        where: the execution provider and the batch size, in words.
        path: the file.

    Raises:
        UsageError: matplotlib isn't installed (OP605).
        ModelError: the file can't be written (OP117).
    """
    slow = sorted((c for c in changes if max(c.seconds) > 0), key=lambda c: -max(c.seconds))[:_SLOWEST]
    labels = Labels.numbered({c.name: c.number for c in changes if c.number})
    with drawn(path, [2.0 * len(slow)]) as (_, (axes,)):
        for side, color, height in ((0, BEFORE, -0.2), (1, AFTER, 0.2)):
            places = [row + height for row in range(len(slow))]
            axes.barh(places, [1e3 * c.seconds[side] for c in slow], 0.4, color=color, label=names[side])
        for row, layer in enumerate(slow):
            before, after = layer.seconds
            text = f" {after / before - 1:+.0%}" if before else ""
            axes.text(1e3 * after, row + 0.2, text, va="center", fontsize="small")
        rows(axes, [c.name for c in slow], labels)
        axes.set_xlabel("time [ms], with the operators up to the next layer")
        axes.set_title(f"time by layer {where}" + left_out(len(changes), len(slow), "slowest"), loc="left")
        axes.legend(loc="lower right", frameon=False)
