"""From `--data` to a repaired model: the part of `prune` that needs inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from onnxprune.cli.output import Output
from onnxprune.errors import PlanError

if TYPE_CHECKING:
    from onnxprune.pipeline import Analysis, Pruned
    from onnxprune.recover import Inputs, Method, Repair

Function = Callable[..., Any]

METHODS = ("reconstruct", "bn", "bias")
_LIMIT = 512
_BATCH = 32

_OPTIONS = (
    click.option(
        "--data",
        metavar="DATA",
        help="Inputs to repair the pruned model with, labels not needed: an .npz or .npy file, a folder of .npy "
        "files, a folder or .zip of images, a Python function module:function, or digits.",
    ),
    click.option(
        "--recover",
        "method",
        type=click.Choice(METHODS),
        help="Refit all weights by least squares, the mean and variance of every channel, or the mean only. "
        "[default: reconstruct, if there is --data]",
    ),
    click.option("--preprocess", metavar="RECIPE", help="How --data become inputs; see `onnxprune evaluate`."),
    click.option("--limit", type=click.IntRange(min=1), help=f"Take so many samples of --data. [default: {_LIMIT}]"),
)


def calibration(function: Function) -> Function:
    """Give a command the options for repair."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def check(data: str | None, **others: Any) -> None:
    """Refuse options that say what to do with data where there are none.

    Raises:
        PlanError: an option lacks --data (OP302).
    """
    names = {"method": "--recover"}
    for name, value in others.items():
        if data is None and value is not None:
            cause = f"{names.get(name, '--' + name)} needs inputs"
            raise PlanError("OP302", cause, hint="give some with --data, without labels")


def repair(
    out: Output,
    analysis: Analysis,
    pruned: Pruned,
    data: str,
    *,
    method: str | None,
    preprocess: str | None,
    limit: int | None,
    seed: int,
) -> list[Repair]:
    """Repair a pruned model in place from the user's inputs.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    from onnxprune.data import open_data, read_recipe
    from onnxprune.plan import apply_plan
    from onnxprune.recover import recover

    recipe = None if preprocess is None else read_recipe(preprocess)
    source = open_data(data, analysis.model.proto, recipe=recipe, limit=limit or _LIMIT, seed=seed)
    for note in source.notes:
        out.note(note)

    def batches() -> Iterator[Inputs]:
        return (batch.inputs for batch in source.batches(_BATCH))

    kept = apply_plan(analysis.graph, pruned.plan)
    with out.step("recover"):
        repairs = recover(kept, pruned.proto, batches, method=cast("Method", method or METHODS[0]), seed=seed)
    if repairs:
        before, after = (sum(getattr(r, when) for r in repairs) / len(repairs) for when in ("before", "after"))
        out.note(f"repaired {len(repairs)} layers; error of their outputs, on average: {before:.3f} → {after:.3f}")
    return repairs
