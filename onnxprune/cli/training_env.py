"""`onnxprune training-env create`: an environment for the backend ort-training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from onnxprune.cli.output import Output, reporting
from onnxprune.errors import TrainingError


@click.command("training-env", short_help="Make an environment for --backend ort-training.")
@click.argument("action", type=click.Choice(["create"]))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--python", help="An interpreter of Python 3.8 to 3.12. [default: the newest that is found]")
@reporting
def command(action: str, path: Path, python: str | None, out: Output) -> None:
    """Make an environment for `onnxprune finetune --backend ort-training` at PATH, and print its interpreter.

    onnxruntime-training is a build of ONNX Runtime of its own, which overwrites the other one: it needs an environment
    to itself. The packages come from where pip is configured to take them.
    """
    from onnxprune.report import documents
    from onnxprune.train.environment import REQUIREMENTS, create_environment

    with out.step(action):
        interpreter = create_environment(path, python or _found())
    if out.json:
        out.data(lambda: documents.document("training-env", python=str(interpreter), packages=list(REQUIREMENTS)))
    else:
        click.echo(interpreter)


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
