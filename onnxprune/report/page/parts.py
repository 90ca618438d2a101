"""What a report is made of: figures, statements, and sections of tables, charts and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

ROWS = 300
"""Most rows of a table."""

Tone = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        bar: a share that a bar shows, at most 1; None without a bar.
        tone: how it is meant.
        note: what is written small after the text.
    """

    text: str
    bar: float | None = None
    tone: Tone = "plain"
    note: str = ""

    def __str__(self) -> str:
        """Return the text."""
        return self.text


Row = Sequence[str | Cell]
"""A row of a table; the first cell names it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        caption: what it shows.
        columns: the titles; with a ">" in front those of figures, with a "<" those of text on one line.
        rows: a cell for each column.
        note: what its reader must know.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    kind: str = field(default="grid", init=False)


@dataclass(frozen=True, slots=True)
class Said:
    """A statement.

    Attributes:
        text: what it says.
        tone: how it is meant.
    """

    text: str
    tone: Tone = "plain"
    kind: str = field(default="said", init=False)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval on a common axis.

    Attributes:
        label: what was measured.
        value: the value.
        low: lower end of the interval.
        high: upper end.
        text: these in words.
        faint: whether it is what others are compared with.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Intervals:
    """Values with their intervals, drawn on one axis.

    Attributes:
        caption: what is drawn.
        rows: the values.
        share: whether they are shares, in percent.
    """

    caption: str
    rows: Sequence[Interval]
    share: bool = True
    kind: str = field(default="intervals", init=False)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        label: what it is.
        points: its points, at least one.
        marks: whether points are good, for each; empty draws them alike.
        names: what is shown of each point under the pointer; empty for nothing.
    """

    label: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[bool] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over a common axis.

    Attributes:
        caption: what is drawn.
        x: the title of the horizontal axis.
        y: the title of the vertical axis.
        lines: the lines.
        limit: a value that is marked on the vertical axis.
        limited: what it is.
    """

    caption: str
    x: str
    y: str
    lines: Sequence[Line]
    limit: float | None = None
    limited: str = ""
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True, slots=True)
class Example:
    """A sample on which two models disagree.

    Attributes:
        name: the sample.
        original: the original's answer.
        model: the model's answer.
        label: the right answer; empty if it isn't known.
        picture: a PNG as a data URI; None if it is no image.
        text: its text; None if it has none.
    """

    name: str
    original: str
    model: str
    label: str
    picture: str | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Samples on which two models disagree."""

    caption: str
    examples: Sequence[Example]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True, slots=True)
class Code:
    """A command line, an argument in each line."""

    lines: Sequence[str]
    kind: str = field(default="code", init=False)


Part = Grid | Said | Intervals | Chart | Gallery | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a report.

    Attributes:
        key: its identifier, a word.
        title: its heading.
        lead: a sentence that says what it shows.
        parts: its contents.
    """

    key: str
    title: str
    lead: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Figure:
    """What matters most: a value before and after.

    Attributes:
        title: what was measured.
        before: its value before; empty if there is none.
        after: its value after.
        change: the change in words.
        note: its interval, or how it was measured.
        ratio: after / before, for a bar; None without a bar.
        tone: how the change is meant.
    """

    title: str
    before: str
    after: str
    change: str
    note: str = ""
    ratio: float | None = None
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured value, for machines.

    Attributes:
        metric: its name, see `METRICS`.
        title: its title.
        value: the value.
        low: lower end of its interval.
        high: upper end.
        samples: the number of samples.
        task: what the model is for; empty if that isn't known.
        data: the data's name.
    """

    metric: str
    title: str
    value: float
    low: float
    high: float
    samples: int
    task: str
    data: str


@dataclass(frozen=True, slots=True)
class Story:
    """What the documents of commands say, in the order of a report.

    Attributes:
        title: the model.
        subtitle: what was done with it.
        date: when.
        figures: what matters most.
        verdicts: what was checked, and what came of it.
        sections: the rest, in order.
        measured: the accuracies.
        command: the command line, or several.
        version: the version that made it.
    """

    title: str
    subtitle: str
    date: str
    figures: Sequence[Figure]
    verdicts: Sequence[Said]
    sections: Sequence[Section]
    measured: Sequence[Measured]
    command: Sequence[Sequence[str]]
    version: str
