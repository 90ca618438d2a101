"""Where the lines, points and labels of a chart lie, in units of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from onnxprune.report.page.parts import Chart, Intervals

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 32, 44
_HEIGHT = 280
_ROW = 30  # of a value with an interval
_LABELS, _TEXTS = 190, 200  # widths of the labels of intervals, and of their texts
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where it is, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line, whether it is good, and what is shown of it under the pointer."""

    x: float
    y: float
    good: bool
    name: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A line.

    Attributes:
        label: what it is.
        path: its points as SVG takes them.
        points: its points.
    """

    label: str
    path: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart: its size, its axes, its lines, and where the limit lies."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x: Sequence[Tick]
    y: Sequence[Tick]
    lines: Sequence[Drawn]
    limit: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval: its label, its text, and where it lies."""

    label: str
    text: str
    y: float
    low: float
    value: float
    high: float
    faint: bool


@dataclass(frozen=True, slots=True)
class Ruler:
    """Intervals on one axis."""

    width: int
    height: int
    left: float
    right: float
    bottom: float
    ticks: Sequence[Tick]
    bars: Sequence[Bar]


def plot(chart: Chart) -> Plot:
    """Return where the parts of a chart lie.

    Examples:
        >>> from onnxprune.report.page.parts import Line
        >>> found = plot(Chart("", "x", "y", [Line("a", [(0.0, 0.0), (10.0, 1.0)])]))
        >>> [tick.text for tick in found.x]
        ['0', '2', '4', '6', '8', '10']
    """
    points = [p for line in chart.lines for p in line.points if isfinite(p[0]) and isfinite(p[1])]
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    if chart.limit is not None:
        ys.append(chart.limit)
    across, up = _nice(min(xs), max(xs)), _nice(min(0.0, *ys), max(ys))
    right, bottom = WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _scaled(x, across, _LEFT, right), _scaled(y, up, bottom, _TOP)

    lines = []
    for line in chart.lines:
        marks = line.marks or [True] * len(line.points)
        names = line.names or [""] * len(line.points)
        known = zip(line.points, marks, names, strict=True)
        placed = [Point(*place(x, y), good, name) for (x, y), good, name in known if isfinite(x) and isfinite(y)]
        lines.append(Drawn(line.label, " ".join(f"{p.x:.1f},{p.y:.1f}" for p in placed), placed))
    return Plot(
        *(WIDTH, _HEIGHT, _LEFT, right, _TOP, bottom),
        x=[Tick(place(x, up[0])[0], f"{x:g}") for x in across],
        y=[Tick(place(across[0], y)[1], f"{y:g}") for y in up],
        lines=lines,
        limit=None if chart.limit is None else place(across[0], chart.limit)[1],
    )


def ruler(found: Intervals) -> Ruler:
    """Return where intervals lie on their axis."""
    scale = 100 if found.share else 1
    ends = [scale * end for row in found.rows for end in (row.low, row.high, row.value) if isfinite(end)] or [0.0]
    least, most = min(ends), max(ends)
    ticks = _nice(least, most)
    if found.share:
        ticks = [tick for tick in ticks if 0 <= tick <= 100]
        ticks = ticks if len(ticks) > 1 else [0.0, 100.0]
    span = [min(least, ticks[0]), max(most, ticks[-1])]
    left, right = _LABELS, WIDTH - _TEXTS
    bars = []
    for number, row in enumerate(found.rows):
        at = [_scaled(scale * v, span, left, right) if isfinite(v) else right for v in (row.low, row.value, row.high)]
        low, value, high = at
        bars.append(Bar(row.label, row.text, 8 + _ROW * (number + 0.5), low, value, high, row.faint))
    bottom = 8 + _ROW * len(found.rows)
    unit = " %" if found.share else ""
    marks = [Tick(_scaled(t, span, left, right), f"{t:g}{unit}") for t in ticks]
    return Ruler(WIDTH, bottom + 26, left, right, bottom, marks, bars)


def _scaled(value: float, span: Sequence[float], start: float, end: float) -> float:
    whole = span[-1] - span[0]
    return start + (value - span[0]) / whole * (end - start) if whole else (start + end) / 2


def _nice(low: float, high: float) -> list[float]:
    """Return round numbers that cover a range, about five steps apart; the steps are 1, 2 or 5 times a power of ten."""
    if not high > low:
        low, high = (low - 0.5, low + 0.5) if low else (0.0, 1.0)
    raw = (high - low) / _TICKS
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = floor(low / step), -floor(-high / step)
    return [round(n * step, 12) for n in range(first, last + 1)]
