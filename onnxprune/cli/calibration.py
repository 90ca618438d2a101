"""From `--data` to a better plan and a repaired model: the parts of commands that need inputs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from onnxprune.cli.options import SHARE
from onnxprune.cli.output import Output
from onnxprune.errors import PlanError

if TYPE_CHECKING:
    from onnxprune.data import Data
    from onnxprune.model.stream import Batches, Inputs
    from onnxprune.recover import Method, Repair
    from onnxprune.sensitivity import Curve
    from onnxprune.workflow.max_drop import MaxDropResult
    from onnxprune.workflow.pipeline import PlanSettings, Pruned, TracedModel

Function = Callable[..., Any]

METHODS = ("reconstruct", "bn", "bias", "none")
LIMIT = 512
_BATCH = 32

_DATA = (
    click.option(
        "--data",
        metavar="DATA",
        help="Inputs to choose channels by and to repair the model with, labels not needed: an .npz or .npy file, a "
        "folder of .npy files, a folder or .zip of images, a Python function module:function, digits, or random.",
    ),
    click.option("--preprocess", metavar="RECIPE", help="How --data become inputs; see `onnxprune evaluate`."),
    click.option("--limit", type=click.IntRange(min=1), help=f"Take so many samples of --data. [default: {LIMIT}]"),
)
_CURVES = click.option(
    "--sensitivity",
    "record",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="What `onnxprune sensitivity -o` measured, for the allocation reconstruction.",
)
_METHOD = click.option(
    "--recover",
    "method",
    type=click.Choice(METHODS),
    help="Refit all weights by least squares, the mean and variance of every channel, the mean only, or nothing. "
    "[default: reconstruct, if there is --data]",
)


_DROP = click.option(
    "--max-drop",
    type=SHARE,
    help="Instead of a budget: remove as much as lowers accuracy by no more than this, measured on a part of --data "
    "that isn't calibrated on. Without labels, disagreement with the original counts.",
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the user said of data.

    Attributes:
        data: where they are, None if there are none.
        preprocess: how they become inputs.
        limit: how many to take at most.
    """

    data: str | None
    preprocess: str | None
    limit: int | None

    def open(self, out: Output, analysis: TracedModel, *, seed: int, limit: int | None) -> Data:
        """Open the data, and say what was assumed.

        Raises:
            DataError: they can't be read or don't fit the model.
        """
        from onnxprune.data import open_data, read_recipe
        from onnxprune.data.functions import is_function_name

        assert self.data is not None
        if is_function_name(self.data) and "" not in sys.path:
            sys.path.insert(0, "")  # as for `python -m`: the user's modules lie where the command is given
        recipe = None if self.preprocess is None else read_recipe(self.preprocess)
        data = open_data(self.data, analysis.graph.proto, recipe=recipe, limit=limit, seed=seed)
        for note in data.notes:
            out.note(note)
        return data

    def batches(self, out: Output, analysis: TracedModel, *, seed: int) -> Batches | None:
        """Return inputs to calibrate on, None if the user gave no data."""
        if self.data is None:
            return None
        data = self.open(out, analysis, seed=seed, limit=self.limit or LIMIT)

        def again() -> Iterator[Inputs]:
            return (batch.inputs for batch in data.batches(_BATCH))

        return again


def data(function: Function) -> Function:
    """Give a command the options for inputs; they arrive as the argument `given`."""

    @functools.wraps(function)
    def command(*args: Any, data: str | None, preprocess: str | None, limit: int | None, **kwargs: Any) -> Any:
        if data is None:
            _refuse(("--preprocess", preprocess), ("--limit", limit))
        return function(*args, given=Given(data, preprocess, limit), **kwargs)

    wrapped: Function = command
    for option in reversed(_DATA):
        wrapped = option(wrapped)
    return wrapped


def curves(function: Function) -> Function:
    """Give a command the option for sensitivities measured before; their file arrives as the argument `record`."""
    return _CURVES(function)


def recovery(function: Function) -> Function:
    """Give a command the options for repair."""
    return _METHOD(_DROP(function))


def check(given: Given, method: str | None, max_drop: float | None) -> None:
    """Refuse a repair without data.

    Raises:
        PlanError: there are none (OP302).
    """
    if given.data is None:
        _refuse(("--recover", method), ("--max-drop", max_drop))
    if max_drop is not None and method == "none":
        raise PlanError("OP302", "--max-drop is about repaired models, and --recover none leaves them as they are")


def read_curves(record: Path | None, analysis: TracedModel) -> list[Curve] | None:
    """Read sensitivities measured before, if the user has some.

    Raises:
        PlanError: the file can't be read (OP313), or is about another model (OP306).
    """
    if record is None:
        return None
    from onnxprune.sensitivity import read_record

    return list(read_record(record, analysis.model.sha256, analysis.graph).curves.values())


def repair(
    out: Output, analysis: TracedModel, pruned: Pruned, batches: Batches, method: str | None, seed: int
) -> list[Repair]:
    """Repair a pruned model in place."""
    from onnxprune.planning.plan import apply_plan
    from onnxprune.recover import recover

    if method == "none":
        return []
    kept = apply_plan(analysis.graph, pruned.plan)
    with out.progress("recover") as progress:
        repairs = recover(
            kept, pruned.proto, batches, method=cast("Method", method or METHODS[0]), seed=seed, progress=progress
        )
    tell(out, repairs)
    return repairs


def search(
    out: Output,
    analysis: TracedModel,
    settings: PlanSettings,
    given: Given,
    max_drop: float,
    *,
    method: str | None,
    curves: list[Curve] | None,
    inputs: Any,
    tolerance: float | None,
) -> MaxDropResult:
    """Prune and repair a model as far as a drop in accuracy allows."""
    from onnxprune.workflow.max_drop import prune_within

    data = given.open(out, analysis, seed=settings.seed, limit=None)
    with out.step("search"):
        found = prune_within(
            *(analysis, settings, data, max_drop),
            limit=given.limit or LIMIT,
            method=cast("Method", method or METHODS[0]),
            curves=curves,
            inputs=inputs,
            tolerance=tolerance,
            progress=out.note,
        )
    tell(out, list(found.repairs))
    return found


def tell(out: Output, repairs: list[Repair]) -> None:
    """Say in a line what repair did."""
    if repairs:
        before, after = (sum(getattr(r, when) for r in repairs) / len(repairs) for when in ("before", "after"))
        out.note(f"repaired {len(repairs)} layers; error of their outputs, on average: {before:.3f} → {after:.3f}")


def _refuse(*options: tuple[str, Any]) -> None:
    for name, value in options:
        if value is not None:
            hint = "give some with --data, labels not needed; `--data random` takes noise where there are none"
            raise PlanError("OP302", f"{name} needs inputs", hint=hint)
