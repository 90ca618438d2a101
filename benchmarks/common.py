"""Shared by the benchmarks: timing, tables for the console and for Markdown, JSON with the environment."""

from __future__ import annotations

import gc
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Generic, TypeVar, cast

import click
from rich.console import Console
from rich.table import Table as RichTable

import onnxprune

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FORMAT = 1

_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxsim",
    "torch",
    "torch-pruning",
)
_WIDTH = 200  # of the console where output is piped into a file
_BUSY = 0.3  # load per core above which timings are unreliable
_QUEUE = os.getloadavg()[0]  # before measuring, which adds load itself

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": perf_counter, "cpu": process_time}
_CLOCK_HELP = "Clock to time with; on a busy machine, CPU time (of all threads together) is more reliable."

T = TypeVar("T")
S = TypeVar("S")
Command = TypeVar("Command", bound=Callable[..., Any])

log = Console(stderr=True, highlight=False)


def options(command: Command) -> Command:
    """Add the options of all benchmarks to a command."""
    for option in (
        click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs."),
        click.option(
            "--only", metavar="PATTERN", default="*", help="Measure only models with matching names; writes nothing."
        ),
        click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs of each timing."),
        click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help=_CLOCK_HELP),
    ):
        command = option(command)
    return command


def chosen(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match a pattern.

    Raises:
        BadParameter: none does.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise click.BadParameter(f"there is only {', '.join(names)}", param_hint="--only")
    return found


with_state = click.option(
    "--state", type=click.Path(path_type=Path), help="File that keeps what is measured; a later run goes on."
)


class Kept(Generic[T]):
    """Results by the names of their cases, kept in a file, so that an interrupted benchmark goes on where it was."""

    def __init__(self, kind: Callable[..., T], path: Path | None) -> None:
        """Read the results that a file holds.

        Args:
            kind: the dataclass of a result.
            path: the file; None to keep nothing.
        """
        self._path, self.results = path, dict[str, T]()
        if path is not None and path.is_file():
            self.results = {name: kind(**known) for name, known in map(json.loads, path.read_text().splitlines())}

    def keep(self, name: str, result: T) -> None:
        """Add a result."""
        self.results[name] = result
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, asdict(cast(Any, result))]) + "\n")

    def measure(self, names: Sequence[str], pattern: str, measured: Callable[[str], T], *, end: float = inf) -> list[T]:
        """Measure the cases that match a pattern, except those that are known; return all that are then known.

        Args:
            names: the names of all cases.
            pattern: a pattern of names.
            measured: returns the result of a case.
            end: no case begins after this time, in seconds of `perf_counter`.
        """
        for name in chosen(names, pattern):
            if name not in self.results and perf_counter() <= end:
                log.print(name, style="dim")
                self.keep(name, measured(name))
        return [self.results[name] for name in names if name in self.results]


@dataclass(frozen=True, slots=True)
class Timing:
    """Duration of a run.

    Attributes:
        median: seconds, the median of all repeats.
        best: seconds, the fastest.
        repeats: number of runs.
    """

    median: float
    best: float
    repeats: int


def measure(
    run: Callable[[S], T],
    setup: Callable[[], S],
    repeats: int,
    *,
    budget: float = 20.0,
    clock: str = "wall",
) -> tuple[T, Timing]:
    """Time a function after one run to warm up.

    Args:
        run: what is timed.
        setup: makes its argument for every run; not timed.
        repeats: number of runs.
        budget: seconds after which no further run starts; there is at least one.
        clock: one of `CLOCKS`.

    Returns:
        The last result, and the time.
    """
    now = CLOCKS[clock]
    result, times = run(setup()), list[float]()
    while len(times) < repeats and (not times or sum(times) < budget):
        del result
        argument = setup()
        gc.collect()
        start = now()
        result = run(argument)
        times.append(now() - start)
    return result, Timing(median(times), min(times), len(times))


class Stopwatch:
    """Times stages of work.

    Attributes:
        times: the time of each stage, by name.
    """

    def __init__(self, repeats: int, clock: str) -> None:
        self.times: dict[str, Timing] = {}
        self._repeats = repeats
        self._clock = clock

    def __call__(self, stage: str, run: Callable[[], T]) -> T:
        """Time a stage as `measure` does, and return its result."""
        result, self.times[stage] = measure(lambda _: run(), lambda: None, self._repeats, clock=self._clock)
        return result


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        header: its heading.
        cell: the text of a row's cell.
        text: whether its cells are words rather than numbers.
    """

    header: str
    cell: Callable[[T], str]
    text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Cells in rows and columns.

    Attributes:
        title: its heading.
        headers: of the columns.
        text: of every column, whether its cells are words rather than numbers.
        rows: the cells.
    """

    title: str
    headers: tuple[str, ...]
    text: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, title: str, columns: Sequence[Column[T]], rows: Sequence[T]) -> Table:
        """Format rows by columns."""
        return cls(
            title,
            tuple(c.header for c in columns),
            tuple(c.text for c in columns),
            tuple(tuple(c.cell(row) for c in columns) for row in rows),
        )

    def rich(self) -> RichTable:
        """Return the table for a console."""
        table = RichTable(title=self.title, title_justify="left")
        for header, text in zip(self.headers, self.text, strict=True):
            table.add_column(header, justify="left" if text else "right", no_wrap=not text)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table, with its title as a heading, in Markdown."""
        rule = (":--" if text else "--:" for text in self.text)
        lines = [self.headers, rule, *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a benchmark.

    Attributes:
        name: the benchmark's module; its JSON is ``benchmarks/<name>.json``.
        title: what was measured.
        notes: how to read it, a paragraph each.
        tables: the results, for people.
        settings: options of the benchmark, including the clock.
        results: the results, for programs: dataclasses by kind.
        page: where the Markdown goes, ``benchmarks/<name>.md`` if empty.
        suffix: of the names of both files, for a benchmark that has several reports.
        environment: the machine and versions that it was measured with.
    """

    name: str
    title: str
    notes: Sequence[str]
    tables: Sequence[Table]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    page: str = ""
    suffix: str = ""
    environment: Mapping[str, Any] = field(default_factory=lambda: environment())

    def publish(self, folder: Path, *, whole: bool) -> None:
        """Print the tables; write Markdown and JSON if all models were measured."""
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_WIDTH)
        for table in self.tables:
            console.print(table.rich(), "")
        console.print(self._measured, style="dim")
        if whole:
            for file in self.write(folder):
                log.print(f"wrote {file}", style="dim")

    def write(self, folder: Path) -> list[Path]:
        """Write Markdown and JSON, and return the files."""
        files = {self._page: self.markdown(), f"benchmarks/{self.name}{self.suffix}.json": self.json()}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in files]

    def markdown(self) -> str:
        """Return the report as a page of Markdown."""
        source = f"Written by `python -m benchmarks.{self.name}`. {self._measured}"
        return "\n\n".join([f"# {self.title}", *self.notes, *(t.markdown() for t in self.tables), source]) + "\n"

    def json(self) -> str:
        """Return the figures as JSON."""
        document = {
            "format": FORMAT,
            "benchmark": self.name,
            "environment": self.environment,
            "settings": self.settings,
            "results": self.results,
        }
        return json.dumps(_plain(document), indent=1) + "\n"

    @property
    def _measured(self) -> str:
        where = self.environment
        packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
        busy = "; the machine was busy, which makes times too long" if where["busy"] else ""
        return (
            f"Measured on {where['date']}: {where['cpu']}, {where['cores']} cores, Python {where['python']}, "
            f"{packages}; {self.settings['clock']} time, load {where['load']} at the start{busy}."
        )

    @property
    def _page(self) -> str:
        return self.page or f"benchmarks/{self.name}{self.suffix}.md"


def environment() -> dict[str, Any]:
    """Return where the benchmark runs: processor, cores, load at the start, versions."""
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": cores,
        "load": round(_QUEUE, 2),
        "busy": _BUSY * cores < _QUEUE,
        "python": platform.python_version(),
        "packages": {"onnxprune": onnxprune.__version__, **dict(_versions())},
    }


def milliseconds(seconds: float) -> str:
    """Format a time in milliseconds with three significant digits: 0.01234 is "12.3"."""
    value = seconds * 1e3
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def yes(holds: bool) -> str:
    """Format a truth value."""
    return "yes" if holds else "no"


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown processor")


def _plain(value: Any) -> Any:
    """Convert dataclasses to dictionaries and round floats to five significant digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
