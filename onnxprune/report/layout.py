"""Parts of console reports: borderless tables, headings, paragraphs, and numbers with units.

Numbers are never cut. Where the columns of a table don't fit, each row becomes a block of lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import compress

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
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
_SHORTEST = 16  # characters of a name
_PHRASE = 24  # characters of a line of running text in a column
_GAP = 2  # spaces between columns
_FEW = 12  # rows


@dataclass(frozen=True, slots=True)
class Name:
    """A name that is shortened in the middle where space is scarce.

    Attributes:
        text: the name.
        style: its style.
        tag: what is written before the name and never shortened, such as the number of a layer.
    """

    text: str
    style: str = ""
    tag: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as much of the name as fits."""
        text = shorten(printable(self.text), options.max_width - len(self.tag))
        yield Text.assemble((self.tag, FAINT), (text, self.style), no_wrap=True, end="")

    @property
    def length(self) -> int:
        """The number of characters of the whole name and its tag."""
        return len(self.tag) + cell_len(printable(self.text))

    @property
    def least(self) -> int:
        """The number of characters that can't be saved."""
        return min(len(self.tag) + _SHORTEST, self.length)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the whole name, and the least to which it can be shortened."""
        return Measurement(self.least, self.length).with_maximum(options.max_width)


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
    cells = [[Text(printable(c)) if isinstance(c, str) else c for c in row] for row in rows]
    return Padding(Sheet(columns, cells), (0, 0, 0, indent))


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table, or a block of lines for each row where its columns don't fit.

    Attributes:
        columns: its columns, with titles.
        rows: a cell for each column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text | Name]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table or the blocks."""
        if self._needed() <= options.max_width:
            yield self._grid()
        else:
            yield from map(self._block, self.rows)

    def _needed(self) -> int:
        """Return the least width of the table: no number is cut, and flexible columns can still be read."""
        cells = [[Text(str(column.header)), *(row[i] for row in self.rows)] for i, column in enumerate(self.columns)]
        widths = [max(map(_length, column)) for column in cells]
        flexible = [not column.no_wrap for column in self.columns]
        # Rich cuts the widest columns to one width, so each must be able to be as narrow as any other needs.
        level = max((_least(cell) for column in compress(cells, flexible) for cell in column), default=0)
        needed = (min(width, level) if free else width for width, free in zip(widths, flexible, strict=True))
        return sum(needed) + _GAP * (len(self.columns) - 1)

    def _grid(self) -> Table:
        titled = any(str(column.header) for column in self.columns)
        columns, padding = map(copy, self.columns), (0, _GAP, 0, 0)
        grid = Table(*columns, box=None, pad_edge=False, padding=padding, header_style="bold", show_header=titled)
        for row in self.rows:
            grid.add_row(*row)
        return grid

    def _block(self, row: Sequence[Text | Name]) -> RenderableType:
        """Return a row as a line with its first cells, and its figures below.

        A column without a title continues the one before it. Many rows are packed more closely than a few.
        """
        head = 1
        while head < len(row) and not self.columns[head].no_wrap and not str(self.columns[head - 1].header):
            head += 1  # a number or a code before a name
        counted = self.columns[0].justify == "right"
        first = _beside([*([Text(str(self.columns[0].header))] if counted else []), *row[:head]])
        figures: list[tuple[str, list[Text | Name]]] = []
        for column, cell in zip(self.columns[head:], row[head:], strict=True):
            if str(column.header) or not figures:
                figures.append((str(column.header), []))
            figures[-1][1].append(cell)
        shown = [(Text(title, FAINT), _beside(cells)) for title, cells in figures if any(map(_length, cells))]
        lines = Table.grid(padding=(0, _GAP, 0, 0))
        if len(self.rows) > _FEW:
            lines.add_row(_Packed([Text(" ").join(map(_text, pair)) for pair in shown]))
        else:
            lines.add_column(min_width=min(max((len(title) for title, _ in figures), default=0), _PHRASE))
            for title, cell in shown:
                lines.add_row(Name(str(title), FAINT) if len(title) > _PHRASE else title, cell)
        return Group(_alone(first), Padding(lines, (0, 0, 0, _GAP))) if shown else _alone(first)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Texts that follow each other, as many in a line as fit."""

    parts: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the lines."""
        lines = [Text()]
        for part in self.parts:
            if lines[-1] and lines[-1].cell_len + _GAP + part.cell_len > options.max_width:
                lines.append(Text())
            lines[-1].append(" " * _GAP if lines[-1] else "").append_text(part)
        yield from lines


def _alone(cell: Text | Name) -> RenderableType:
    """Return a cell as a line of its own."""
    line = Table.grid()
    line.add_row(cell)
    return line


def _beside(cells: Sequence[Text | Name]) -> Text | Name:
    """Join cells, those that are empty left out; a name at the end can still be shortened."""
    *before, last = [cell for cell in cells if _length(cell)] or [Text()]
    if isinstance(last, Name):
        return replace(last, tag="".join(f"{_text(cell)}{' ' * _GAP}" for cell in before) + last.tag)
    return Text(" " * _GAP).join(map(_text, (*before, last)))


def _text(cell: Text | Name) -> Text:
    return cell if isinstance(cell, Text) else Text(cell.tag + printable(cell.text), cell.style)


def _length(cell: Text | Name) -> int:
    return cell.length if isinstance(cell, Name) else cell_len(str(cell))


def _least(cell: Text | Name) -> int:
    """Return the least width of a cell in a flexible column: names are shortened, text wraps between words."""
    if isinstance(cell, Name):
        return cell.least
    text = str(cell)
    return max([min(cell_len(text), _PHRASE), *map(cell_len, text.split())])


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading with a faint note after it and an empty line before it.

    Attributes:
        text: the heading.
        note: the note; may be empty.
    """

    text: str
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the heading."""
        yield line("\n", (self.text, "bold"), (f"  {self.note}" if self.note else "", FAINT))


def heading(text: str, note: str = "") -> RenderableType:
    """Return a heading with a faint note after it and an empty line before it."""
    return Heading(text, note)


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
    return f"{value:z.1f} %"


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
