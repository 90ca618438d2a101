"""`onnxprune training-env create`: an environment for the backend ort-training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from onnxprune.cli.output import Output, reporting
from onnxprune.errors import TrainingError


@click.group("training-env", short_help="Make an environment for --backend ort-training.")
def command() -> None:
    """Environments for `onnxprune finetune --backend ort-training`.

    onnxruntime-training is a build of ONNX Runtime of its own, which overwrites the other one: it needs an environment
    to itself.
    """


@command.command("create", short_help="Make one.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--python", help="An interpreter of Python 3.8 to 3.12. [default: the newest that is found]")
@reporting
def create(path: Path, python: str | None, out: Output) -> None:
    """Make a virtual environment with onnxruntime-training at PATH, and print its interpreter.

    The packages come from where pip is configured to take them.
    """
    from onnxprune.train.environment import create_environment

    with out.step("create"):
        click.echo(create_environment(path, python or _found()))


def _found() -> str:
    """Find an interpreter of a version that onnxruntime-training is built for.

    Raises:
        TrainingError: there is none (OP908).
    """
    from onnxprune.train.environment import PYTHONS

    if ".".join(map(str, sys.version_info[:2])) in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            return found
    cause = f"onnxruntime-training needs Python {PYTHONS[-1]} to {PYTHONS[0]}, and none is found"
    raise TrainingError("OP908", cause, hint="say where one is with --python")
