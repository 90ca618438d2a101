"""Reports of a run: the options that ask for them, and what they need to know besides the command's document."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import options
from onnxprune.cli.failures import ARGUMENTS, RECEIPT
from onnxprune.cli.output import check_output, write_text
from onnxprune.errors import PlanError
from onnxprune.settings import ReportSettings, build
from onnxprune.settings.reporting import PAGES

if TYPE_CHECKING:
    from onnxprune.report.documents import Document


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of a run.

    Attributes:
        settings: which.
        arguments: the command line, without the program.
        options: the options that were given, each with its value as typed.
    """

    settings: ReportSettings
    arguments: tuple[str, ...]
    options: tuple[tuple[str, str], ...]

    @property
    def asked(self) -> bool:
        """Whether any report is asked for."""
        return bool(self.settings.report or self.settings.card)

    def complete(self, document: Document) -> Document:
        """Return a document with the command line and the environment.

        Without a report, the date and the load are left out: the same command prints the same document again.
        """
        from onnxprune.runtime.environment import environment

        run: dict[str, Any] = {"command": ["onnxprune", *self.arguments], "options": dict(self.options)}
        if "environment" not in document:
            found = environment()
            run["environment"] = found if self.asked else replace(found, date="", load=None)
        return {**document, **run}

    def write(self, document: Document) -> Iterator[Path]:
        """Write the reports of a complete document, and yield their files.

        Raises:
            ModelError: a file can't be written (OP117).
        """
        if self.asked:
            yield from write_reports(self.settings, [document])


def write_reports(settings: ReportSettings, documents: Sequence[Document]) -> Iterator[Path]:
    """Write the reports of some documents, and yield their files.

    Raises:
        ModelError: a file can't be written (OP117).
        UsageError: a document isn't one of a command (OP611).
    """
    from onnxprune.report.page import story, to_card, to_html, to_receipt

    told = story(documents)
    for name in settings.report:
        write_text(Path(name), to_html(told) if name.lower().endswith(PAGES) else to_receipt(told))
        yield Path(name)
    if settings.card is not None:
        write_text(Path(settings.card), to_card(told))
        yield Path(settings.card)


def receipts(*, examples: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of reports. `Output` writes the reports with the command's document.

    Args:
        examples: whether the command compares two models; it then gets an argument `examples`, the number of samples
            on which they disagree to keep.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def receipted(*args: Any, reports: dict[str, Any], **kwargs: Any) -> Any:
            context, settings = click.get_current_context(), build(ReportSettings, reports)
            check_reports(settings, kwargs, bool(kwargs.get("force")))
            given = context.meta.get(ARGUMENTS, ())
            context.meta[RECEIPT] = Reports(settings, given, tuple(_given(context.command, given)))
            return function(*args, **({"examples": settings.kept} if examples else {}), **kwargs)

        return options.of(ReportSettings, "reports", without=() if examples else ("examples",))(receipted)

    return decorate


def check_reports(settings: ReportSettings, others: Mapping[str, Any], force: bool) -> None:
    """Check that reports can be written, before the work starts.

    Args:
        settings: the reports.
        others: what the command reads and writes: its arguments.
        force: whether the files may exist.

    Raises:
        PlanError: two outputs have the same name (OP302).
        ModelError: a file exists, is read by the command or can't be written, see `check_output`.
    """
    taken = [os.path.abspath(name) for name in _paths(others)]
    for name in (*settings.report, *filter(None, [settings.card])):
        path = Path(name)
        if os.path.abspath(path) in taken and not path.exists():
            raise PlanError("OP302", "two outputs have the same name", where=name, hint="name another file")
        check_output(path, force, inputs=_paths(others))
        taken.append(os.path.abspath(path))


def _paths(value: Any) -> Iterator[str]:
    """Yield all texts and paths in arguments."""
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)


def _given(command: click.Command, arguments: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the names of the options in a command line, each with its value as typed; that of flags is "yes"."""
    known = {flag: p for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)}
    found: dict[str, list[str]] = {}
    rest = iter(arguments)
    for word in rest:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if (option := known.get(flag)) is not None:
            name = flag if flag.startswith("--") else max(option.opts, key=len)
            switch = option.is_flag or option.count
            found.setdefault(name[2:], []).append("yes" if switch else value if equals else next(rest, ""))
    yield from ((name, ", ".join(values)) for name, values in found.items())
