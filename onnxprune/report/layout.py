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

from onnxprune.report.text import printable

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


_PREFIXES = ("", "k", "M", "G", "T", "P")


def si(number: int, unit: str = "") -> str:
    """Write a count with an SI prefix: 25557032 is "25.6 M", with unit "B" it is "25.6 MB"."""
    scaled, prefix = float(number), 0
    while abs(scaled) >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled, prefix = scaled / 1000, prefix + 1
    digits = 0 if prefix == 0 or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {_PREFIXES[prefix]}{unit}".rstrip()


def percent(share: float) -> str:
    """Write a share: 0.4449 is "44.5 %"; what isn't quite all or nothing isn't shown as such."""
    value = share * 100
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def change(before: int, after: int) -> str:
    """Write what became of a quantity: 200 to 150 is "-25.0 %"."""
    if before == 0:
        return "-" if after == 0 else "new"
    share = after / before - 1
    return f"{'+' if share > 0 else '-' if share < 0 else ''}{percent(abs(share))}"


def share(part: int, whole: int) -> float:
    """Return a part of a whole as a number from 0 to 1; nothing of nothing is 0."""
    return part / whole if whole else 0.0


def dims(shape: Sequence[int | str | None]) -> str:
    """Write a shape: (1, 3, 224, 224) is "1x3x224x224", an unknown size "?", an empty shape "scalar"."""
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"


def shorten(text: str, length: int) -> str:
    """Take out the middle of a text that is too long; the end of a name tells more than its beginning."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    tail = max(length - 1 - head, 0)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def count(number: int, noun: str) -> str:
    """Write a number of things: "1 layer", "1,204 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
