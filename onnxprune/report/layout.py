"""Pieces of console reports: tables without borders, names that shrink in the middle, headings, paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxprune.report.text import printable, shorten

CODE = "yellow"
GROUP = "cyan"
FAINT = "dim"
GOOD = "green"
BAD = "bold red"
_LINE = 96
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Name:
    """A name that loses its middle where there is no room for all of it; in a pipe there is room for any.

    Attributes:
        text: the name.
        style: its style.
    """

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as much of the name as fits."""
        text = shorten(printable(self.text), options.max_width)
        yield Text(text, style=self.style, no_wrap=True, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Ask for the whole name, be content with 16 characters."""
        length = len(printable(self.text))
        return Measurement(min(length, _SHORTEST), length).with_maximum(options.max_width)


Cell = str | Text | Name


def table(columns: str, rows: Iterable[Sequence[Cell]], *, indent: int = 2) -> RenderableType:
    """Make a table.

    Args:
        columns: their titles, "|" between them. "node ~" may give way where room is scarce (a `Name` loses its
            middle, text wraps); "params >" is set to the right; others take the room they need.
        rows: their cells.
        indent: spaces before the table.
    """
    titled = bool(columns.strip("|~> "))
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=titled)
    for title in columns.split("|"):
        grid.add_column(
            title.rstrip("~> "),
            justify="right" if title.endswith(">") else "left",
            no_wrap=not title.endswith("~"),
        )
    for row in rows:
        grid.add_row(*(Text(printable(c)) if isinstance(c, str) else c for c in row))
    return Padding(grid, (0, 0, 0, indent))


def heading(text: str, note: str = "") -> RenderableType:
    """Make a heading with a faint note behind it, and an empty line before it."""
    return line("\n", (text, "bold"), (f"  {note}" if note else "", FAINT))


def group_tag(index: int) -> Text:
    """Write a group's number as reports refer to it: g7."""
    return Text(f"g{index}", GROUP)


def paragraph(text: str | Text, style: str = "", *, indent: int = 2) -> RenderableType:
    """Make a paragraph, wrapped at a readable width."""
    body = Text(printable(text)) if isinstance(text, str) else text
    body.stylize_before(style)
    return Padding(Constrain(body, _LINE), (0, 0, 0, indent))


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """Join strings, (string, style) pairs and texts."""
    clean = (
        p if isinstance(p, Text) else Text(printable(p)) if isinstance(p, str) else Text(printable(p[0]), p[1])
        for p in parts
    )
    return Text("").join(clean)


def stack(*parts: RenderableType) -> RenderableType:
    """Put parts below each other."""
    return Group(*parts)
