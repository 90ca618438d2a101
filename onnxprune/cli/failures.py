"""How the command line fails: one message on stderr, and an exit status that says whose fault it is."""

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

VERBOSITY = "onnxprune.verbosity"  # keys in a context's meta
COMMAND = "onnxprune.command"
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_PIPE_CLOSED = 141  # 128 + SIGPIPE
_MARKS = {r"error(\[\w+\])?": "red", "  -->": "blue", "  help": "cyan"}


class Failure(click.ClickException):
    """Bad input, wrong usage or a bug: a message of lines that begin with "error", "  -->" and "  help"."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on stderr, in color where a person reads it."""
        lines = map(_paint if colored(sys.stderr) else str, printable(self.message).splitlines())
        click.echo("\n".join(lines), file=file, err=True)


class GateFailure(Failure):
    """A check failed."""

    exit_code = 1


@contextmanager
def failures(context: click.Context | None = None) -> Iterator[None]:
    """Turn whatever goes wrong inside into what click ends the process with."""
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
        # Whoever read the output has left. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(_PIPE_CLOSED) from error
    except ImportError as error:
        _trace(context)
        hint = "install it anew: pip install --force-reinstall 'onnxprune[cpu]' or 'onnxprune[gpu]'"
        raise Failure(str(UsageError("OP609", f"the installation is incomplete: {error}", hint=hint))) from error
    except Exception as error:
        _trace(context)
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "this is a bug: please report it, with what -vv adds to this message"
        raise Failure(f"error: internal error: {cause}\n  help: {hint}") from error


def colored(stream: IO[str]) -> bool:
    """Whether a person reads the stream who didn't ask for plain text."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def unbreakable_streams() -> None:
    """Let names that the terminal's encoding can't show be escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _usage(error: click.UsageError) -> UsageError:
    path = error.ctx.command_path if error.ctx else "onnxprune"
    cause = " ".join(error.format_message().split()).rstrip(".")
    return UsageError("OP602", cause, hint=f"see `{path} --help`")


def with_flags(message: str, context: click.Context | None) -> str:
    """Write the command's flags for the settings that a text of the library names, and commands as one types them.

    The place of an error is a setting's name, perhaps with more behind it; in a text, settings stand in backquotes.
    The library writes "the command `inspect`", for `onnxprune inspect`.
    """
    message = message.replace("the command `", "`onnxprune ")
    command = None if context is None else context.meta.get(COMMAND)
    if command is None:
        return message
    flags = {str(getattr(p, "field", p.name)): p.opts[-1] for p in command.params if isinstance(p, click.Option)}

    def flag(found: re.Match[str]) -> str:
        return found[1] + flags[found[2]] if found[2] in flags else found[0]

    message = re.sub(r"(^  --> )(\w+)(?=$| )", flag, message, flags=re.MULTILINE)
    return re.sub(r"()`(\w+)`", flag, message)


def _trace(context: click.Context | None) -> None:
    if context is not None and context.meta.get(VERBOSITY, 0) >= 2:
        click.echo(printable(traceback.format_exc()), err=True, nl=False)


def _paint(line: str) -> str:
    """Color the mark that a line of a message begins with."""
    for mark, color in _MARKS.items():
        if found := re.match(mark, line):
            return click.style(found[0], fg=color, bold=True) + line[found.end() :]
    return line
