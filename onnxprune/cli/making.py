"""What all commands have in common that make a file of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import reporting
from onnxprune.cli.receipts import receipts
from onnxprune.settings import Settings


def makes(
    name: str,
    settings: type[Settings],
    file: str,
    *,
    examples: str,
    required: Collection[str] = (),
    compares: bool = True,
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a command: MODEL, -o, the options of settings, --force, reports, and how output is printed.

    The function gets the arguments `model`, `output`, `given` (the settings), `force` and `out`. Other options are
    declared below this decorator.

    Args:
        name: the command's name.
        settings: the class of its settings.
        file: the help of -o.
        examples: the examples at the end of its help.
        required: settings that the user must give.
        compares: whether it compares two models; the function then gets an argument `examples`, see `receipts`.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        whole = options.force(receipts(examples=compares)(reporting(function)))
        whole = options.output(file)(options.of(settings, "given", required=required)(whole))
        return click.command(name, cls=Command, epilog=examples)(options.model_argument(whole))

    return decorate
