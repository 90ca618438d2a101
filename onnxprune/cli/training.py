"""Options of training, and the settings that they are parsed into."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.options import SHARE, ParamType
from onnxprune.cli.output import Output

if TYPE_CHECKING:
    from onnxprune.train import Progress, TrainSettings

Function = Callable[..., Any]

_LOSSES = ("cross-entropy", "kl", "mse", "bce")


class WeightedLoss(ParamType[tuple[str, float]]):
    """A loss and its weight: kl or kl=0.5."""

    name = "NAME[=WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse a loss."""
        if isinstance(value, tuple):
            return value
        name, _, weight = str(value).partition("=")
        if name not in _LOSSES:
            self.fail(f"{name!r} is not one of the losses: {', '.join(_LOSSES)}", param, ctx)
        try:
            return name, float(weight or 1)
        except ValueError:
            self.fail(f"{weight!r} is not a weight", param, ctx)


# Options whose arguments are named as the settings are.
_PLAIN = (
    click.option("--epochs", type=int, help="Passes through the data. [default: 10]"),
    click.option("--batch", type=int, help="Samples in a batch. [default: 64]"),
    click.option("--output-name", metavar="NAME", help="The output that is trained. [default: the first]"),
    click.option("--feature-weight", type=float, help="Weight of --feature. [default: 1]"),
    click.option("--slimming", type=float, help="Weight of the sum of BatchNormalization's scales. [default: 0]"),
    click.option(
        "--lasso",
        type=float,
        help="Weight of the squares of channels, weak ones most; best with --optimizer sgd. [default: 0]",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["lamb", "adamw", "sgd"]),
        help="LAMB, AdamW, or SGD with Nesterov momentum. [default: lamb]",
    ),
    click.option(
        "--rate", type=float, help="Peak learning rate. [default: 0.001 for lamb, 0.0005 for adamw, 0.02 for sgd]"
    ),
    click.option("--momentum", type=float, help="Of sgd. [default: 0.9]"),
    click.option("--decay", type=float, help="Weight decay; norms and biases are exempt. [default: 0.0005]"),
    click.option("--clip", type=float, help="Largest norm of the gradient, 0 for any. [default: 5]"),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine", "one-cycle", "step"]),
        help="How the learning rate goes on after rising. [default: cosine]",
    ),
    click.option("--warm-up", type=SHARE, help="Share of all steps in which the rate rises. [default: 5%]"),
    click.option("--accumulate", type=int, help="So many batches make a step. [default: 1]"),
    click.option(
        "--norms",
        type=click.Choice(["batch", "frozen"]),
        help="Whether batch normalizations use the batch's moments. [default: batch, from 8 samples on]",
    ),
    click.option("--patience", type=int, help="Stop after so many epochs without a better model. [default: never]"),
)
_OTHERS = (
    click.option(
        "--loss",
        "losses",
        type=WeightedLoss(),
        multiple=True,
        help="cross-entropy, kl, mse or bce, with a weight: kl=0.5. Repeatable. [default: kl with a teacher, and "
        "cross-entropy with labels]",
    ),
    click.option("--feature", "features", multiple=True, metavar="TENSOR", help="Follow the teacher here. Repeatable."),
    click.option("--temperature", type=float, help="Of kl. [default: 4]"),
    click.option("--smoothing", type=float, help="Share of cross-entropy's labels spread evenly. [default: 0]"),
    click.option("--flip", is_flag=True, default=None, help="Mirror half of the images, left to right."),
    click.option("--crop", type=click.IntRange(min=0), help="Shift images by up to so many pixels."),
    click.option("--cutout", type=click.IntRange(min=0), help="Cover a square of this side in each image."),
    click.option("--freeze", multiple=True, metavar="PATTERN", help="Leave such weights or nodes as they are."),
    click.option("--train", "also", multiple=True, metavar="PATTERN", help="Train such initializers as well."),
)
_NAMES = (
    *("epochs", "batch", "feature_weight", "slimming", "lasso", "optimizer", "rate", "momentum", "decay", "clip"),
    *("schedule", "warm_up", "accumulate", "norms", "patience"),
)
_COLLECTED = ("features", "freeze", "also")
_RENAMED = {"output_name": "output"}
_AUGMENTATION = ("flip", "crop", "cutout")
_LOSS = ("temperature", "smoothing")


def training(function: Function) -> Function:
    """Give a command the options of training; those that the user gave arrive as the argument `training`."""
    names = (*_NAMES, "losses", *_COLLECTED, *_AUGMENTATION, *_LOSS, *_RENAMED)

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in names}
        return function(*args, training={n: v for n, v in values.items() if v not in (None, ())}, **kwargs)

    wrapped: Function = command
    for option in reversed((*_PLAIN, *_OTHERS)):
        wrapped = option(wrapped)
    return wrapped


def settings_of(given: Mapping[str, Any], seed: int) -> TrainSettings:
    """Turn options into settings."""
    from onnxprune.train import Augmentation, LossSettings, TrainSettings

    values = {name: given[name] for name in (*_NAMES, *_COLLECTED) if name in given}
    values |= {ours: given[name] for name, ours in _RENAMED.items() if name in given}
    if "losses" in given:
        values["losses"] = dict(given["losses"])
    return TrainSettings(
        loss=LossSettings(**{name: given[name] for name in _LOSS if name in given}),
        augmentation=Augmentation(**{name: given[name] for name in _AUGMENTATION if name in given}),
        seed=seed,
        **values,
    )


@contextmanager
def progress_bar(out: Output) -> Iterator[Callable[[Progress], None]]:
    """Show a training on a terminal: steps, loss, value, learning rate, time left."""
    if not out.watched:
        with out.step("train"):
            yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("train", total=None)

        def show(at: Progress) -> None:
            value = "" if at.value is None else f"  best {abs(at.value):.4g}"
            text = f"epoch {at.epoch}  loss {at.loss:.4f}{value}  rate {at.rate:.2g}"
            bar.update(task, description=text, completed=at.step, total=at.steps)

        yield show
