"""`python -m onnxprune_ort_training PATH`: make an environment with onnxruntime-training in it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from onnxprune.cli.failures import failures
from onnxprune.errors import TrainingError
from onnxprune_ort_training.environment import PYTHONS, create_environment


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--python", help="An interpreter of Python 3.8 to 3.12. [default: the newest that is found]")
def command(path: Path, python: str | None) -> None:
    """Make an environment for `onnxprune finetune --backend ort-training` at PATH, and print its interpreter.

    onnxruntime-training is a build of ONNX Runtime of its own, which overwrites the other one: it needs an environment
    to itself. The packages come from where pip is configured to take them.
    """
    with failures():
        click.echo(create_environment(path, python or _found()))


def _found() -> str:
    """Find an interpreter of a version that onnxruntime-training is built for.

    Raises:
        TrainingError: there is none (OP908).
    """
    if ".".join(map(str, sys.version_info[:2])) in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            return found
    cause = f"onnxruntime-training needs Python {PYTHONS[-1]} to {PYTHONS[0]}, and none is found"
    raise TrainingError("OP908", cause, hint="say where one is with --python")


if __name__ == "__main__":
    command(prog_name="python -m onnxprune_ort_training")
