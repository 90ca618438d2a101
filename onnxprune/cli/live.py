"""Progress of a command: a live line on a terminal, a line a minute elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import perf_counter
from typing import TYPE_CHECKING

import click

from onnxprune.progress import says_time_left
from onnxprune.report.text import printable

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 60.0
"""Seconds between the lines where there is no terminal."""

_SOON = 2.0  # seconds; earlier, the time left isn't estimated


class Phase:
    """What is under way.

    Attributes:
        text: its name, with details after a colon.
        done: the number of its parts that are done.
        total: the number of its parts; None if unknown.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        """Start without a phase."""
        self.text, self.done, self.total = "", 0, None  # type: tuple[str, int, int | None]
        self._clock, self._started, self._first = clock, clock(), 0

    @property
    def name(self) -> str:
        """The name without details."""
        return self.text.partition(":")[0]

    @property
    def seconds(self) -> float:
        """The time spent on it."""
        return self._clock() - self._started

    def update(self, text: str, done: int, total: int | None) -> None:
        """Go on. The clock starts again with another phase, and where counting does."""
        if text.partition(":")[0] != self.name or done < self.done or total != self.total:
            self._started, self._first = self._clock(), done
        self.text, self.done, self.total = text, done, total

    def __str__(self) -> str:
        """Return a line such as "repair, 3 of 12, 0:40, about 2:00 left"."""
        spent, made = self.seconds, self.done - self._first
        parts = [self.text, f"{self.done:,} of {self.total:,}" if self.total else "", _clock(spent)]
        if self.total and made > 0 and spent > _SOON and not says_time_left(self.text):
            parts.append(f"about {_clock(spent / made * (self.total - self.done))} left")
        return ", ".join(filter(None, parts))


@contextmanager
def live(phase: Phase, console: Console) -> Iterator[Callable[[], None]]:
    """Show a phase in the last line of a terminal, and yield a function that draws it again."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    wrapped = Column(no_wrap=False)  # numbers aren't cut
    columns = (BarColumn(bar_width=10), TextColumn("{task.fields[phase]}", markup=False, table_column=wrapped))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, phase=phase, visible=False)
        name = ""

        def draw() -> None:
            nonlocal name
            other, name = phase.name != name, phase.name  # a phase is shown however short it is
            bar.update(task, completed=phase.done, total=phase.total, visible=True, refresh=other)

        yield draw


@contextmanager
def every_minute(phase: Phase) -> Iterator[None]:
    """Print a phase to stderr once a minute."""
    ended = Event()

    def report() -> None:
        while not ended.wait(EVERY):
            click.echo(printable(f"... {phase}"), err=True)

    reporter = Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _clock(seconds: float) -> str:
    """Write a duration: 75 is "1:15", 3700 is "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
