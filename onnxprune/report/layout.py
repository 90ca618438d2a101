"""Parts of console reports: borderless tables, headings, paragraphs, and numbers with units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
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
    """A name that is shortened in the middle where space is scarce; never in a pipe.

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
        """Return the width of the whole name, and 16 characters as the least."""
        length = len(printable(self.text))
        return Measurement(min(length, _SHORTEST), length).with_maximum(options.max_width)


Cell = str | Text | Name
Rows = Iterable[Sequence[Cell]]
Tables = Iterator[RenderableType]  # the tables, headings and paragraphs of a report, made as they are printed


def left(*titles: str) -> list[Column]:
    """Return left-aligned columns that keep their width."""
    return [Column(Text(printable(title)), no_wrap=True) for title in titles]


def right(*titles: str) -> list[Column]:
    """Return right-aligned columns that keep their width, for numbers."""
    return [Column(Text(printable(title)), justify="right", no_wrap=True) for title in titles]


def flexible(*titles: str) -> list[Column]:
    """Return left-aligned columns that shrink where space is scarce: a `Name` is shortened, text wraps."""
    return [Column(Text(printable(title))) for title in titles]


def table(columns: Sequence[Column], rows: Rows, *, indent: int = 2) -> RenderableType:
    """Return a table without borders, and without a header if no column has a title.

    Args:
        columns: its columns, see `left`, `right` and `flexible`.
        rows: a cell for each column.
        indent: spaces to the left of the table.
    """
    titled = any(str(column.header) for column in columns)
    grid = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=titled)
    for row in rows:
        grid.add_row(*(Text(printable(c)) if isinstance(c, str) else c for c in row))
    return Padding(grid, (0, 0, 0, indent))


def heading(text: str, note: str = "") -> RenderableType:
    """Return a heading with a faint note after it and an empty line before it."""
    return line("\n", (text, "bold"), (f"  {note}" if note else "", FAINT))


def group_tag(index: int) -> Text:
    """Return a group's number as reports write it: g7."""
    return Text(f"g{index}", GROUP)


def paragraph(text: str | Text, style: str = "", *, indent: int = 2) -> RenderableType:
    """Return a paragraph, wrapped at a readable width."""
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


_PREFIXES = ("", "k", "M", "G", "T", "P")


def si(number: int, unit: str = "") -> str:
    """Write a count with an SI prefix: 25557032 is "25.6 M", with unit "B" it is "25.6 MB"."""
    scaled, prefix = float(number), 0
    while abs(scaled) >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled, prefix = scaled / 1000, prefix + 1
    digits = 0 if prefix == 0 else _decimals(abs(scaled))
    return f"{scaled:.{digits}f} {_PREFIXES[prefix]}{unit}".rstrip()


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds with three significant digits: 0.01234 is "12.3 ms"."""
    value = seconds * 1e3
    return f"{value:.{_decimals(value)}f} ms"


def _decimals(value: float) -> int:
    """Return the decimal places that give three significant digits; at most 3."""
    return next((n for n, least in enumerate((99.95, 9.995, 0.9995)) if value >= least), 3)


def percent(share: float) -> str:
    """Write a share: 0.4449 is "44.5 %". Only exact values are shown as 0 or 100 %."""
    value = share * 100
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def change(before: int, after: int) -> str:
    """Write a relative change: 200 to 150 is "-25.0 %"."""
    if before == 0:
        return "-" if after == 0 else "new"
    share = after / before - 1
    return f"{'+' if share > 0 else '-' if share < 0 else ''}{percent(abs(share))}"


def share(part: float, whole: float) -> float:
    """Return part / whole, or 0 if the whole is 0."""
    return part / whole if whole else 0.0


def dims(shape: Sequence[int | str | None] | None) -> str:
    """Write a shape: (1, 3, 224, 224) is "1x3x224x224", what is unknown "?", an empty shape "scalar"."""
    if shape is None:
        return "?"
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"


def shorten(text: str, length: int) -> str:
    """Cut out the middle of a long text; names differ mainly at the end, so more of it is kept."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    tail = max(length - 1 - head, 0)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def count(number: int, noun: str) -> str:
    """Write a number of things: "1 layer", "1,204 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
