"""`onnxprune demo`: shrink a small network that comes along."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import check_output
from onnxprune.errors import ModelError

_FILES = ("digits_resnet.onnx", "digits_train.npz", "digits_test.npz")


@click.command("demo", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path), default=Path("onnxprune-demo"))
@options.force
@click.pass_context
def command(context: click.Context, folder: Path, force: bool) -> None:
    """Write a small trained network and its images into FOLDER, and shrink it to 30 % of its multiply-accumulates.

    The network tells handwritten digits of 8 by 8 pixels apart. FOLDER is onnxprune-demo unless you name another.
    """
    import shutil

    from onnxprune.cli.shrink import command as shrink

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"can't make the folder: {error.strerror or error}"
        raise ModelError("OP117", cause, where=str(folder)) from error
    for name in _FILES:
        check_output(folder / name, force)
    for name in _FILES:
        shutil.copyfile(_source() / name, folder / name)
    click.echo(f"wrote {', '.join(_FILES[:-1])} and {_FILES[-1]} to {folder}", err=True)
    model, train, test, small = (_quoted(folder / name) for name in (*_FILES, "digits_small.onnx"))
    line = f"shrink {model} -o {small} --target macs=30% --threads 1 --data {train}"
    click.echo(f"$ onnxprune {line}", err=True)
    arguments = [*shlex.split(line)[1:], *(["--force"] if force else [])]
    with shrink.make_context("shrink", arguments, parent=context) as inner:
        shrink.invoke(inner)
    click.echo(f"next: onnxprune evaluate {small} --against {model} --data {test}", err=True)


def _source() -> Path:
    """Return the folder of the demo's files: in the wheel, or in a checkout."""
    package = Path(__file__).parents[1]
    return next(f for f in (package / "demo", package.parent / "models") if (f / _FILES[0]).exists())


def _quoted(path: Path) -> str:
    return shlex.quote(path.as_posix())
