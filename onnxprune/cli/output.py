"""Output of commands: data to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

from onnxprune.cli.failures import CHECKS, COMMAND, PRINTED, RECEIPT, STOPPED, TABLES, VERBOSITY, colored, with_flags
from onnxprune.cli.live import Phase, every_minute, live
from onnxprune.errors import ModelError, PlanError
from onnxprune.progress import Progress, silent
from onnxprune.report.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.planning.plan import PrunePlan
    from onnxprune.report.checks import Check
    from onnxprune.report.documents import Document
    from onnxprune.report.layout import Tables
    from onnxprune.rewrite.verify import Verification
    from onnxprune.settings import PruneSettings
    from onnxprune.workflow.gates import Gate

FORMS = ("table", "json", "markdown", "junit")
_PIPE = 120  # columns of a pipe or file, unless COLUMNS says otherwise


class Receipt(Protocol):
    """Writes reports of a command's result, see `onnxprune.cli.receipts`."""

    @property
    def asked(self) -> bool:
        """Whether any report is asked for."""

    def complete(self, document: Document) -> Document:
        """Return a document with the command line and the environment."""

    def write(self, document: Document) -> Iterator[Path]:
        """Write the reports of a complete document, and yield their files."""


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command.

    Attributes:
        form: how results are printed: "table", "json", "markdown" or "junit".
        verbosity: -1 for -q, 1 for -v, 2 for -vv.
        displays: consoles that show progress now; lines are printed through the last.
    """

    form: str = "table"
    verbosity: int = 0
    displays: list[Console] = field(default_factory=list)

    def data(self, document: Document, *tables: Tables, checks: Sequence[Check] = ()) -> None:
        """Print a result to stdout, as `form` says.

        Args:
            document: the result as a document.
            tables: the result as tables.
            checks: what decides the exit status; JUnit's document has them, once the command is done.
        """
        document, context = self._reported(document), click.get_current_context()
        match self.form:
            case "json":
                from onnxprune.report.documents import to_json

                click.echo(to_json(document), nl=False)
                context.meta[PRINTED] = True
            case "markdown":
                from onnxprune.report.markdown import to_markdown

                click.echo(with_flags(to_markdown(chain.from_iterable(tables)), context), nl=False)
            case "junit":
                context.meta[CHECKS] = checks
                context.meta[TABLES] = self._drawn(tables, _console(io.StringIO()))
            case _:
                self._print(tables, err=False)

    def summary(self, document: Document, *tables: Tables, err: bool = False, checks: Sequence[Check] = ()) -> None:
        """Print the summary of a command that writes a file; -q suppresses its tables.

        Args:
            document: the summary as a document.
            tables: the summary as tables.
            err: whether the file is written to stdout, so that the tables go to stderr.
            checks: what was checked, see `data`.
        """
        if self.form != "table" and not err:
            self.data(document, *tables, checks=checks)
            return
        self._reported(document)
        if self.verbosity >= 0:
            self._print(tables, err=err)

    def tables(self, *tables: Tables) -> None:
        """Print tables ahead of the result, where results are tables; -q suppresses them."""
        if self.form == "table" and self.verbosity >= 0:
            self._print(tables, err=False)

    def note(self, text: str) -> None:
        """Print a line to stderr, unless -q is set."""
        if self.verbosity >= 0:
            self._say(text)

    def warn(self, text: str) -> None:
        """Print a warning to stderr."""
        self._say(text, "warning")

    @property
    def watched(self) -> bool:
        """Whether to show progress: on a terminal, without -v or -q."""
        return self.verbosity == 0 and sys.stderr.isatty()

    @property
    def reports(self) -> bool:
        """Whether a report is written of the result."""
        receipt: Receipt | None = click.get_current_context().meta.get(RECEIPT)
        return receipt is not None and receipt.asked

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show one phase of progress, see `progress`."""
        with self.progress() as progress:
            progress(what, 0, None)
            yield

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show progress: on a terminal live, elsewhere once a minute; with -v, print the duration of each phase."""
        phase = Phase()

        def timed(text: str = "", done: int = 0, total: int | None = None) -> None:
            if phase.name and text.partition(":")[0] != phase.name and self.verbosity >= 1:
                click.echo(f"{phase.name:<24} {phase.seconds:7.3f} s", err=True)
            phase.update(text, done, total)

        if self.verbosity < 0:
            yield silent
        elif not self.watched:
            with every_minute(phase):
                yield timed
                timed()
        else:
            console = _console(sys.stderr)
            with live(phase, console) as draw:

                def show(text: str, done: int, total: int | None) -> None:
                    phase.update(text, done, total)
                    draw()

                self.displays.append(console)
                try:
                    yield show
                finally:
                    self.displays.remove(console)

    def on_stop(self, text: Callable[[], str]) -> None:
        """Set what is said when the command is interrupted: what was kept, and how to go on.

        Without this, commands with an output file say that nothing was written.
        """
        click.get_current_context().meta[STOPPED] = text

    def completed(self, document: Document) -> Document:
        """Return a document as JSON has it: with the command line and the environment."""
        receipt: Receipt | None = click.get_current_context().meta.get(RECEIPT)
        return document if receipt is None else receipt.complete(document)

    def _reported(self, document: Document) -> Document:
        """Write the reports that were asked for; return the document as reports and JSON have it."""
        receipt: Receipt | None = click.get_current_context().meta.get(RECEIPT)
        if receipt is None or not (receipt.asked or self.form == "json"):
            return document
        document = receipt.complete(document)
        for path in receipt.write(document):
            self.note(f"wrote {path}")
        return document

    def _say(self, text: str, mark: str = "") -> None:
        """Print a line to stderr, above the progress if it is shown."""
        if self.displays:
            from rich.text import Text

            start = ((mark, "bold yellow"), ": ") if mark else ()
            self.displays[-1].print(Text.assemble(*start, printable(text)), soft_wrap=True)
            return
        styled = click.style(mark, fg="yellow", bold=True) if mark and colored(sys.stderr) else mark
        click.echo(f"{styled}: {printable(text)}" if mark else printable(text), err=True)

    def _print(self, tables: tuple[Tables, ...], *, err: bool) -> None:
        console = _console(sys.stderr if err else sys.stdout)
        click.echo(self._drawn(tables, console), err=err, nl=False, color=console.is_terminal)

    def _drawn(self, tables: tuple[Tables, ...], console: Console) -> str:
        with console.capture() as captured:
            for part in chain.from_iterable(tables):
                console.print(part)
        text = with_flags(captured.get(), click.get_current_context(silent=True))
        if not console.is_terminal:
            text = re.sub(r" +$", "", text, flags=re.MULTILINE)
        return text.removeprefix("\n")


def reporting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options -v, -q and --format, and the argument `out`."""

    @click.option("-v", "--verbose", count=True, help="Print the duration of each step; -vv adds tracebacks.")
    @click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
    @click.option(
        "--format",
        "form",
        type=click.Choice(FORMS),
        default="table",
        help="Print tables (default), JSON, Markdown, or checks as JUnit XML.",
    )
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: Any, verbose: int, quiet: bool, form: str, **kwargs: Any) -> Any:
        if verbose and quiet:
            raise PlanError("OP302", "-v and -q contradict each other")
        context.meta.update({VERBOSITY: verbose, COMMAND: context.command})
        out = Output(form, verbosity=-1 if quiet else verbose)
        with _logged(out):
            return function(*args, out=out, **kwargs)

    return command


@contextmanager
def _logged(out: Output) -> Iterator[None]:
    """Print the library's log while a command runs: warnings as warnings, information as notes, and every line once."""
    import logging  # not above: it takes a tenth of the time of --help

    said: set[str] = set()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = with_flags(record.getMessage(), click.get_current_context(silent=True))
            if text in said:  # data are opened again for another part of the work, and stages run again
                return
            said.add(text)
            (out.warn if record.levelno >= logging.WARNING else out.note)(text)

    logger, handler = logging.getLogger("onnxprune"), Lines(logging.INFO)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # ONNX Runtime's quantizers give the root logger a handler of their own
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else None if stream.isatty() else _PIPE
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


def warn_of_gaps(out: Output, plan: PrunePlan | None, verification: Verification | None) -> None:
    """Warn if part of the model wasn't proved, or if no output depends on the removed channels: a proof of little."""
    if verification is not None and verification.unproved:
        from onnxprune.shapes.runnable import operators

        out.warn(
            f"not proved: {operators(verification.unproved)}. ONNX Runtime's CPU provider refuses the operator or its "
            "types; if a library has the operator, pass it with --custom-ops"
        )
    idle = verification is not None and verification.passed and not verification.informative
    if idle and plan is not None and plan.removed:
        out.warn(
            "no output changes by more than the error allowed when the removed weights are set to zero, so the "
            "comparison proves little (OP504): pass real inputs with --input"
        )


def warn_of_uncertain(out: Output, gates: Sequence[Gate]) -> None:
    """Warn of gates that are held, but whose intervals reach the limit."""
    for gate in gates:
        if not gate.decided:
            out.warn(f"{gate}, so {gate.more} may decide otherwise")


def nothing_written(model: Path, settings: PruneSettings) -> str:
    """Say that an interrupted `plan` wrote nothing, and how its measurements can be kept the next time."""
    text, data = "stopped; nothing was written", settings.calibration.data
    if data is None or settings.sensitivity is not None or settings.plan is not None:
        return text
    measure = f"onnxprune sensitivity {model} --data {data} -o FILE.json"
    return f"{text}; measurements that resume: {measure}, then this command with --sensitivity FILE.json"


def what_is_kept(checkpoint: Path | None, began: float, *, useful: bool = True, written: str = "") -> str:
    """Say what an interrupted command has kept in its checkpoint.

    Args:
        checkpoint: the file.
        began: when the command began, in seconds since the epoch.
        useful: whether the command could have kept something.
        written: what it has written to its output; empty if nothing.
    """
    said = f"stopped; {written or 'nothing was written'}"
    if checkpoint is None:
        return said + ("; with --checkpoint FILE, such a run can go on" if useful else "")
    if not checkpoint.exists():
        return f"{said}, but no checkpoint" if written else f"{said}, not even a checkpoint"
    old = "" if checkpoint.stat().st_mtime >= began else ", of an earlier run,"
    said, again = (f"{said}; ", "--resume --force") if written else ("stopped; ", "--resume")
    return f"{said}{checkpoint}{old} has what was done; the same command with {again} goes on from it"


def check_output(path: Path, force: bool, *, inputs: Iterable[Any] = ()) -> None:
    """Check that an output can be written, before the work starts.

    Args:
        path: the file.
        force: whether it may exist.
        inputs: what the command reads; those that are paths of files are never overwritten.

    Raises:
        ModelError: the file exists or is an input (OP116), or its folder is missing or not writable (OP117).
    """
    if path.is_dir():
        raise ModelError("OP116", "the output is a folder", where=str(path))
    paths = [given for given in inputs if isinstance(given, str | os.PathLike) and os.path.exists(given)]
    if path.exists() and any(os.path.samefile(path, given) for given in paths):
        hint = "name another file; not even --force overwrites what is read"
        raise ModelError("OP116", "the output is a file that the command reads", where=str(path), hint=hint)
    if os.path.lexists(path) and not force:
        hint = "pass --force to overwrite it"
        raise ModelError("OP116", "the output exists", where=str(path), hint=hint)
    folder = path.parent
    if not folder.is_dir():
        raise ModelError("OP117", "the output's folder doesn't exist", where=str(folder))
    if not os.access(folder, os.W_OK):
        raise ModelError("OP117", "the output's folder can't be written to", where=str(folder))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        ModelError: the file can't be written (OP117).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        cause = f"can't write the file: {error.strerror or error}"
        raise ModelError("OP117", cause, where=str(path)) from error
