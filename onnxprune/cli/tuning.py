"""Training as a part of pruning: `prune --finetune`, once or by turns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from onnxprune.cli.output import Output
from onnxprune.cli.training import progress_bar
from onnxprune.errors import PlanError

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxprune.cli.calibration import Given
    from onnxprune.planning.plan import PrunePlan
    from onnxprune.recover import Method
    from onnxprune.train import FineTuned
    from onnxprune.workflow.pipeline import PlanSettings, TracedModel

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the user said of training a pruned model.

    Attributes:
        epochs: passes through the data, None for no training.
        steps: in so many steps it is pruned, trained after each.
        rewind: the model with the weights that are gone back to before training.
    """

    epochs: int | None
    steps: int
    rewind: Path | None

    @property
    def iterative(self) -> bool:
        """Whether pruning and training take turns."""
        return self.steps > 1 or self.rewind is not None


_HOOK = (
    click.option(
        "--finetune",
        "epochs",
        type=click.IntRange(min=1),
        metavar="EPOCHS",
        help="Train the pruned model on all of --data to follow the original, and on labels if there are any.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=1,
        help="With --finetune: prune in so many steps, and train after each. [default: 1]",
    ),
    click.option(
        "--rewind",
        type=click.Path(path_type=Path),
        metavar="EARLY",
        help="With --finetune: train what remains from the weights of this model, an early stage of MODEL's training.",
    ),
)


def hook(function: Function) -> Function:
    """Give a command that prunes the options to fine-tune; they arrive as the argument `tuning`."""

    @functools.wraps(function)
    def command(*args: Any, epochs: int | None, steps: int, rewind: Path | None, **kwargs: Any) -> Any:
        return function(*args, tuning=Tuning(epochs, steps, rewind), **kwargs)

    wrapped: Function = command
    for option in reversed(_HOOK):
        wrapped = option(wrapped)
    return wrapped


def check_tuning(given: Given, tuning: Tuning, *, max_drop: float | None, planned: bool) -> None:
    """Refuse to fine-tune without data, or what a search has found; and to prune in steps what is planned already.

    Raises:
        PlanError: options contradict each other, or one is missing (OP302).
    """
    if tuning.epochs is None:
        if tuning.iterative:
            flag = "--steps" if tuning.steps > 1 else "--rewind"
            raise PlanError("OP302", f"{flag} is about training", hint="say how long with --finetune EPOCHS")
        return
    if given.data is None:
        raise PlanError("OP302", "--finetune needs inputs", hint="give some with --data; labels aren't needed")
    if max_drop is not None:
        hint = "prune with --max-drop first, then train with `onnxprune finetune`"
        raise PlanError("OP302", "--max-drop judges models that aren't trained", hint=hint)
    if tuning.iterative and planned:
        cause = "in steps, each is planned by what training made of the one before"
        raise PlanError("OP302", cause, hint="leave --plan and --sensitivity out")


def tune(out: Output, given: Given, analysis: TracedModel, pruned: ModelProto, tuning: Tuning, seed: int) -> FineTuned:
    """Train a pruned model to follow its original."""
    from onnxprune.train import TrainSettings, finetune

    assert tuning.epochs is not None
    data = given.open(out, analysis, seed=seed, limit=given.limit)
    settings = TrainSettings(epochs=tuning.epochs, seed=seed)
    with progress_bar(out) as progress:
        result = finetune(pruned, data, teacher=analysis.graph.proto, settings=settings, progress=progress)
    if result.failure is not None:
        out.warn(f"{result.failure.cause}: the best model before that is kept")
    return result


def prune_in_steps(
    out: Output, given: Given, analysis: TracedModel, settings: PlanSettings, tuning: Tuning, method: str | None
) -> tuple[PrunePlan, FineTuned]:
    """Prune and train by turns; return what left the original in all, and what came of the last training."""
    from onnxprune.train import TrainSettings
    from onnxprune.workflow.iterative import Round, prune_iteratively

    assert tuning.epochs is not None
    data = given.open(out, analysis, seed=settings.seed, limit=given.limit)
    done = 0

    def tell(found: Round) -> None:
        nonlocal done
        done += 1
        left = found.plan.after["macs"] / found.plan.before["macs"]
        tuned, told = found.tuned, ""
        if tuned.metric is not None and tuned.before is not None and tuned.after is not None:
            before, after = (e[tuned.metric].model.value for e in (tuned.before, tuned.after))
            told = f", {tuned.metric} {before:.4g} → {after:.4g}"
        out.note(f"step {done} of {tuning.steps}: {left:.1%} of the MACs{told}")

    repair = None if method == "none" else cast("Method", method or "reconstruct")
    with out.step("prune and train"):
        _, rounds = prune_iteratively(
            *(analysis, data, settings, tuning.steps),
            training=TrainSettings(epochs=tuning.epochs, seed=settings.seed),
            repair=repair,
            rewind=tuning.rewind,
            progress=tell,
        )
    return rounds[-1].plan, rounds[-1].tuned
