"""Failures of the command line: one message on stderr, and an exit status."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.report.text import printable

VERBOSITY = "onnxprune.verbosity"  # a key of click.Context.meta, as the next
COMMAND = "onnxprune.command"
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_PIPE_CLOSED = 141  # 128 + SIGPIPE
_MARKS = {r"error(\[\w+\])?": "red", "  -->": "blue", "  help": "cyan"}


class Failure(click.ClickException):
    """Bad input, wrong usage or a bug; lines of the message begin with "error", "  -->" or "  help"."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on stderr, in color on a terminal."""
        lines = map(_paint if colored(sys.stderr) else str, printable(self.message).splitlines())
        click.echo("\n".join(lines), file=file, err=True)


class GateFailure(Failure):
    """A check failed."""

    exit_code = 1


@contextmanager
def failures(context: click.Context | None = None) -> Iterator[None]:
    """Convert every exception to one that click turns into an exit status."""
    try:
        yield
    except click.UsageError as error:
        raise Failure(str(_usage(error))) from error
    except (click.ClickException, click.exceptions.Exit):
        raise
    except OnnxPruneError as error:
        _trace(context)
        raise (GateFailure if error.exit_status == 1 else Failure)(with_flags(str(error), context)) from error
    except (KeyboardInterrupt, click.Abort) as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader has closed the pipe. Python would report that again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(_PIPE_CLOSED) from error
    except ImportError as error:
        _trace(context)
        hint = "reinstall: pip install --force-reinstall 'onnxprune[cpu]' or 'onnxprune[gpu]'"
        raise Failure(str(UsageError("OP609", f"the installation is incomplete: {error}", hint=hint))) from error
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
    if command is None:
        return message
    options = [p for p in command.params if isinstance(p, click.Option)]
    flags = {str(getattr(p, "field", p.name)): (p.secondary_opts or p.opts)[-1] for p in options}

    def flag(found: re.Match[str]) -> str:
        return found[1] + flags[found[2]] if found[2] in flags else found[0]

    message = re.sub(r"(^  --> )(\w+)(?=$| )", flag, message, flags=re.MULTILINE)
    return re.sub(r"()`(\w+)`", flag, message)


def _trace(context: click.Context | None) -> None:
    if context is not None and context.meta.get(VERBOSITY, 0) >= 2:
        click.echo(printable(traceback.format_exc()), err=True, nl=False)


def _paint(line: str) -> str:
    """Color the prefix of a line of a message."""
    for mark, color in _MARKS.items():
        if found := re.match(mark, line):
            return click.style(found[0], fg=color, bold=True) + line[found.end() :]
    return line
