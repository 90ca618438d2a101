"""What all plots have in common: figures that grow with their rows, safe names, files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import ModelError, UsageError
from onnxprune.report.labels import Labels
from onnxprune.report.layout import shorten
from onnxprune.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#c6cdd6", "#2a6fb0"
ROWS = 200
"""Most rows of a plot; those beyond are left out, which its title says."""

_WIDTH, _ROW, _FRAME = 9.0, 0.22, 1.4  # inches: of a figure, of a row, and of titles and axes
_NAME = 36  # characters


@contextmanager
def drawn(path: Path, heights: Sequence[float]) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Give a figure with axes one below the other, and write it to a file at the end.

    Args:
        path: the file; its suffix says the format.
        heights: of the axes, in rows.

    Raises:
        UsageError: matplotlib isn't installed (OP605).
        ModelError: the file can't be written (OP117).
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("OP605", "a plot needs matplotlib", hint="pip install 'onnxprune[plot]'") from error
    # Names come from files that anyone may have made: a "$" isn't the start of a formula.
    with rc_context({"text.parse_math": False, "font.size": 9.0}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks
        sizes = [_ROW * height + _FRAME for height in heights]
        figure = Figure(figsize=(_WIDTH, sum(sizes)), layout="constrained")
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=sizes)
        yield figure, list(axes[:, 0])
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            raise ModelError("OP117", f"can't write the plot: {error}", where=str(path)) from error


def rows(axes: Axes, names: Sequence[str], labels: Labels) -> None:
    """Name the rows of horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), [named(labels, name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def named(labels: Labels, node: str) -> str:
    """Return a node's number, if it is a layer, and its name, shortened."""
    number = labels.numbers.get(node)
    text = shorten(printable(labels.short(node)), _NAME)
    return text if number is None else f"L{number}  {text}"


def left_out(total: int, shown: int, which: str) -> str:
    """Say how many rows aren't shown, for a title."""
    return "" if total <= shown else f" (the {shown} {which} of {total:,})"
