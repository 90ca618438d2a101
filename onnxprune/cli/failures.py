"""Failures of the command line: one message on stderr, and an exit status."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import click

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.report.text import printable
from onnxprune.version import REPORTS

VERBOSITY = "onnxprune.verbosity"  # a key of click.Context.meta, as the next
COMMAND = "onnxprune.command"
FORM = "onnxprune.form"  # the format that the arguments ask for
CHECKS = "onnxprune.checks"  # for JUnit: what was checked
TABLES = "onnxprune.tables"  # for JUnit: what would be printed
PRINTED = "onnxprune.printed"  # whether stdout has a document
ARGUMENTS = "onnxprune.arguments"  # the command line
RECEIPT = "onnxprune.receipt"  # a `Receipt`: the reports of a result
STOPPED = "onnxprune.stopped"  # a function that returns what is said after an interruption
_PIPE_CLOSED = 141  # 128 + SIGPIPE
_PLACE = "  --> "
_NAMES = 10_000  # of a folder, to look for a similar one among
_MARKS = {r"error(\[\w+\])?": "red", "  -->": "blue", "  help": "cyan"}


class Failure(click.ClickException):
    """Bad input, wrong usage or a bug; lines of the message begin with "error", "  -->" or "  help"."""

    exit_code = 2

    def __init__(self, message: str, fields: dict[str, str | None] | None = None) -> None:
        """Set the message, and what its document has instead: code, cause, where and hint."""
        super().__init__(message)
        self.fields = fields or {"code": None, "cause": message, "where": None, "hint": None}

    @classmethod
    def of(cls, error: OnnxPruneError, context: click.Context | None = None) -> Failure:
        """Return the failure that reports an error."""
        where = error.where and with_flags(_PLACE + error.where, context).removeprefix(_PLACE)
        if near := _near_file(error):
            error = type(error)(error.code, error.cause, where=error.where, hint=f"did you mean {near}?")
        cause, hint = (text and with_flags(text, context) for text in (error.cause, error.hint))
        fields = {"code": error.code, "cause": cause, "where": where, "hint": hint}
        return (GateFailure if error.exit_status == 1 else cls)(with_flags(str(error), context), fields)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on stderr, in color on a terminal."""
        lines = map(_paint if colored(sys.stderr) else str, printable(self.message).splitlines())
        click.echo("\n".join(lines), file=file, err=True)

    def content(self) -> dict[str, Any]:
        """Return the failure for a document."""
        return {**self.fields, "exit_status": self.exit_code}


class GateFailure(Failure):
    """A check failed."""

    exit_code = 1


class Stopped(Failure):
    """The user has interrupted the command; the message says what was kept."""

    exit_code = 130  # 128 + SIGINT, as shells report it


def asked_form(args: Sequence[str]) -> str | None:
    """Return the format that the arguments of a command line ask for; they may be wrong otherwise."""
    given = [arg.removeprefix("--format=") for arg in args if arg.startswith("--format=")]
    given += [value for flag, value in pairwise(args) if flag == "--format"]
    return given[-1] if given else None


@contextmanager
def reported(context: click.Context) -> Iterator[None]:
    """Report every exception as `failures` does, and in a document where that is asked for.

    JSON documents of failures are printed where nothing else is on stdout; JUnit's are printed when all is done.
    """
    began = time.perf_counter()
    try:
        with failures(context):
            yield
    except Failure as failure:
        if context.meta[FORM] == "junit":
            _print_junit(context, time.perf_counter() - began, failure.content())
        elif context.meta[FORM] == "json" and not context.meta.get(PRINTED):
            document = {"version": REPORTS, "report": "error", **failure.content()}
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        raise
    if context.meta[FORM] == "junit":
        _print_junit(context, time.perf_counter() - began)


def _print_junit(context: click.Context, seconds: float, failure: dict[str, Any] | None = None) -> None:
    from onnxprune.report.checks import to_junit

    command, found = context.invoked_subcommand or "", context.meta
    text = to_junit(command, found.get(CHECKS, ()), failure=failure, seconds=seconds, text=found.get(TABLES, ""))
    click.echo(text, nl=False)


@contextmanager
def failures(context: click.Context | None = None) -> Iterator[None]:
    """Convert every exception to one that click turns into an exit status."""
    try:
        yield
    except click.UsageError as error:
        raise Failure.of(_usage(error)) from error
    except (click.ClickException, click.exceptions.Exit):
        raise
    except OnnxPruneError as error:
        _trace(context)
        raise Failure.of(error, context) from error
    except (KeyboardInterrupt, click.Abort) as error:
        raise Stopped(_stopped(context)) from error
    except BrokenPipeError as error:
        # The reader has closed the pipe. Python would report that again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(_PIPE_CLOSED) from error
    except ImportError as error:
        _trace(context)
        hint = "reinstall: pip install --force-reinstall 'onnxprune[cpu]' or 'onnxprune[gpu]'"
        raise Failure.of(UsageError("OP609", f"the installation is incomplete: {error}", hint=hint)) from error
    except Exception as error:
        _trace(context)
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "this is a bug; please report it with the output of -vv"
        raise Failure(f"error: internal error: {cause}\n  help: {hint}") from error


def colored(stream: IO[str]) -> bool:
    """Whether to color the stream: on a terminal, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def unbreakable_streams() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _usage(error: click.UsageError) -> UsageError:
    path = error.ctx.command_path if error.ctx else "onnxprune"
    cause = " ".join(error.format_message().split()).rstrip(".")
    return UsageError("OP602", cause, hint=f"see `{path} --help`")


def with_flags(message: str, context: click.Context | None) -> str:
    """Replace the names of settings in a text of the library by the command's flags, and commands by what users type.

    Settings are at the start of an error's location, or in backquotes in a text. The library writes "the command
    `inspect`" for `onnxprune inspect`.
    """
    message = message.replace("the command `", "`onnxprune ")
    command = None if context is None else context.meta.get(COMMAND)
    if context is None or command is None:
        return message
    flags = _flags(command)

    def flag(found: re.Match[str]) -> str:
        known = flags if found[2] in flags else _flags_of_all(context)
        return found[1] + known[found[2]] if found[2] in known else found[0]

    message = re.sub(r"(^  --> )(\w+)(?=$| )", flag, message, flags=re.MULTILINE)
    return re.sub(r"()`(\w+)`", flag, message)


def _flags(command: click.Command) -> dict[str, str]:
    """Return the flag of each setting that a command has."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    return {str(getattr(p, "field", p.name)): (p.secondary_opts or p.opts)[-1] for p in options}


def _flags_of_all(context: click.Context) -> dict[str, str]:
    """Return the flag of each setting that any command has, as a text may speak of another command."""
    root, group = context.find_root(), context.find_root().command
    if not isinstance(group, click.Group):
        return {}
    commands = [group.get_command(root, name) for name in group.list_commands(root)]
    return {name: flag for command in commands if command is not None for name, flag in _flags(command).items()}


def _near_file(error: OnnxPruneError) -> str | None:
    """Return an existing path that resembles the one that an error says is missing."""
    missing = isinstance(error.__cause__, FileNotFoundError)
    if error.where is None or not (missing or re.search("no such file|doesn't exist", error.cause)):
        return None
    path = Path(error.where)
    try:
        names = [] if path.exists() else [each.name for each in islice(path.parent.iterdir(), _NAMES)]
    except OSError:
        return None
    near = get_close_matches(path.name, names, n=20, cutoff=0.7)
    # Names that are alike in their suffix only don't count.
    found = next((name for name in near if get_close_matches(path.stem, [Path(name).stem], cutoff=0.7)), None)
    return str(path.with_name(found)) if found else None


def _stopped(context: click.Context | None) -> str:
    """Say what an interrupted command kept, and how to go on."""
    if context is not None and STOPPED in context.meta:
        return str(context.meta[STOPPED]())
    command = None if context is None else context.meta.get(COMMAND)
    writes = command is not None and any(p.name == "output" for p in command.params)
    return "stopped; nothing was written" if writes else "stopped"


def _trace(context: click.Context | None) -> None:
    if context is not None and context.meta.get(VERBOSITY, 0) >= 2:
        click.echo(printable(traceback.format_exc()), err=True, nl=False)


def _paint(line: str) -> str:
    """Color the prefix of a line of a message."""
    for mark, color in _MARKS.items():
        if found := re.match(mark, line):
            return click.style(found[0], fg=color, bold=True) + line[found.end() :]
    return line
