"""Options that several commands share, and what they are parsed into. Defaults are the library's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from onnxprune.errors import PlanError, UsageError

if TYPE_CHECKING:
    from onnxprune.planning.budget import Constraints
    from onnxprune.workflow.pipeline import PlanSettings

Function = Callable[..., Any]

_QUANTITIES = ("macs", "params", "size", "memory", "latency")


if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """A type of parameters that says what it converts to."""

        def __class_getitem__(cls, _: Any) -> type[click.ParamType]:
            """Take what it converts to, for whoever checks types."""
            return cls


class Share(ParamType[float]):
    """A share as a number or in per cent: 0.5 or 50%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a share; its range is for the library to judge."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(%?)\s*", str(value))
        try:
            number = float(match[1]) if match else float("nan")
        except ValueError:
            number = float("nan")
        if number != number:
            self.fail(f"{value!r} is not a share such as 0.5 or 50%", param, ctx)
        return number / 100 if match and match[2] else number


SHARE = Share()


class TargetType(ParamType[tuple[str, float]]):
    """A limit on a cost: macs=0.5."""

    name = "KIND=SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse a limit."""
        kind, _, limit = str(value).partition("=")
        if kind not in _QUANTITIES:
            near = get_close_matches(kind, _QUANTITIES, n=1)
            meant = f"; did you mean {near[0]}?" if near else f": {', '.join(_QUANTITIES)}"
            self.fail(f"{kind!r} is not one of the costs{meant}", param, ctx)
        return kind, SHARE.convert(limit, param, ctx)


class PatternRatio(ParamType[tuple[str, float]]):
    """A ratio for the nodes that match a pattern: layer4*=0.3."""

    name = "PATTERN=R"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse a pattern and a ratio."""
        pattern, equals, ratio = str(value).rpartition("=")
        if not (pattern and equals):
            self.fail(f"{value!r} is not of the form PATTERN=R", param, ctx)
        return pattern, SHARE.convert(ratio, param, ctx)


class BlockCount(ParamType[int | Literal["auto"]]):
    """How many residual blocks leave, or auto for as many as pay."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["auto"]:
        """Parse a number, or the word."""
        return "auto" if value == "auto" else click.IntRange(min=0).convert(value, param, ctx)


class InputShape(ParamType[tuple[str | None, tuple[int, ...]]]):
    """The shape of an input: NAME:1,3,224,224, the name only where there are several inputs."""

    name = "NAME:1,3,224,224"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, tuple[int, ...]]:
        """Parse a shape; names may contain colons."""
        match = re.fullmatch(r"(?:(.+):)?(\d+(?:,\d+)*)", str(value).replace(" ", ""))
        if match is None:
            self.fail(f"{value!r} is not of the form NAME:1,3,224,224", param, ctx)
        return match[1], tuple(int(n) for n in match[2].split(","))


class InputFile(ParamType[tuple[str | None, Path]]):
    """An array for an input: NAME=x.npy, the name only where there are several inputs."""

    name = "NAME=X.npy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Path]:
        """Parse a name and a path; a file that exists under the whole text wins."""
        if isinstance(value, tuple):
            return value
        name, equals, path = str(value).partition("=")
        if not equals or Path(value).exists():
            return None, Path(value)
        return name, Path(path)


def _full_names(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Turn the providers' short names into ONNX Runtime's own."""
    from onnxprune.runtime.provider import parse_provider

    return tuple(parse_provider(name).name for name in given)


model_argument = click.argument("model", type=click.Path(path_type=Path))

input_shapes = click.option(
    "--input-shape",
    "input_shapes",
    type=InputShape(),
    multiple=True,
    help="Size of an input whose dimensions are symbolic. Repeatable; the name may be left out "
    "where the model has one input.",
)

_POLICIES = {
    "attention": click.option(
        "--attention",
        type=click.Choice(["heads", "width"]),
        help="What leaves an attention: whole heads, or a part of every head's width. [default: heads]",
    ),
    "grouped": click.option(
        "--grouped",
        type=click.Choice(["channels", "groups"]),
        help="What leaves a grouped convolution: as many channels of every group, or whole groups. [default: channels]",
    ),
}


def policies(function: Function) -> Function:
    """Give a command the options that say what leaves together; those that the user gave arrive as `policies`."""
    return _gather(function, _POLICIES, "policies")


inputs = click.option(
    "--input",
    "inputs",
    type=InputFile(),
    multiple=True,
    help="Array to compare on, instead of a generated one. Repeatable; the name may be left out "
    "where the model has one input.",
)

tolerance = click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest error allowed, relative to an output's largest value. [default: 1e-4 for float32, "
    "by the coarsest type of the weights]",
)

providers = click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    callback=_full_names,
    help="Execution provider: cpu, cuda, ... or ONNX Runtime's own name. Repeatable, in order of preference.",
)

force = click.option("--force", is_flag=True, help="Overwrite existing files.")

_PLANNING: Mapping[str, Callable[[Function], Function]] = {
    "ratio": click.option("--ratio", type=SHARE, help="Share of the channels to remove."),
    "targets": click.option(
        "--target",
        "targets",
        type=TargetType(),
        multiple=True,
        help="Limit on a cost as a share of the model's: macs, params, size (bytes of weights) or "
        "memory (peak of activations), or latency, which is measured. Met from below.",
    ),
    "criterion": click.option(
        "--criterion",
        help="What makes a channel important: l1, l2, bn-scale, fpgm, lamp, random; with --data also obs (the error "
        "that is left after refitting), taylor, fisher, mean-abs, apoz, variance; or one of an installed package. The "
        "allocation reconstruction takes obs if nothing is said. [default: l2]",
    ),
    "allocation": click.option(
        "--allocation",
        type=click.Choice(["uniform", "global", "reconstruction"]),
        help="Take the same share of every group; the least important channels of all; or, with --data, what costs the "
        "least error of the outputs for what it saves, as measured; with --data this is taken if nothing is said. "
        "[default: uniform]",
    ),
    "min_channels": click.option("--min-channels", type=int, help="Every layer keeps so many. [default: 1]"),
    "max_ratio": click.option(
        "--max-ratio", type=SHARE, help="Largest share of a group that may leave. [default: 0.9]"
    ),
    "round_to": click.option(
        "--round-to",
        type=int,
        help="Channel counts are multiples of this. [default: 16, or 8, where layers are wide enough]",
    ),
    "include": click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Prune only what nodes of such names make. Repeatable.",
    ),
    "exclude": click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave the weights of nodes of such names alone. Repeatable.",
    ),
    "ratio_for": click.option(
        "--ratio-for",
        type=PatternRatio(),
        multiple=True,
        help="Ratio for what nodes of such names make. Repeatable.",
    ),
    "exact_only": click.option(
        "--exact-only",
        is_flag=True,
        default=None,
        help="Leave groups alone whose removal changes statistics (LayerNorm, means over channels).",
    ),
    "remove_blocks": click.option(
        "--remove-blocks",
        type=BlockCount(),
        help="Remove so many residual blocks as a whole, those that change least what goes through them (with --data) "
        "or have the smallest weights; auto, with --data and a target, for as many as pay. Channels leave what "
        "remains, until it meets the budget.",
    ),
    "provider": click.option(
        "--provider",
        metavar="NAME",
        help="For --target latency: the execution provider that it is measured on. [default: cpu]",
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="For --target latency: threads within an operator. [default: all cores]",
    ),
    "seed": click.option("--seed", type=click.IntRange(min=0), help="Seed of whatever is drawn. [default: 0]"),
}
_CONSTRAINTS = ("min_channels", "max_ratio", "round_to", "include", "exclude", "exact_only", "ratio_for")


def planning(function: Function) -> Function:
    """Give a command the planning options; those that the user gave arrive as the argument `planning`."""
    return _gather(function, _PLANNING, "planning")


def measuring(function: Function) -> Function:
    """Give a command the planning options that a budget isn't needed for; they arrive likewise."""
    names = ("criterion", *(n for n in _CONSTRAINTS if n != "ratio_for"), "seed")
    return _gather(function, {n: option for n, option in _PLANNING.items() if n in names}, "planning")


def _gather(function: Function, options: Mapping[str, Callable[[Function], Function]], into: str) -> Function:
    @functools.wraps(function)
    def gathering(**kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in options}
        given = {name: value for name, value in values.items() if value not in (None, ())}
        return function(**{into: given}, **kwargs)

    command: Function = gathering
    for option in reversed([*options.values()]):
        command = option(command)
    return command


def flag(name: str) -> str:
    """Return a planning option as it is written on the command line."""
    return "--" + {"targets": "target"}.get(name, name).replace("_", "-")


def settings_of(planning: Mapping[str, Any], *, data: bool = False, budget: bool = True) -> PlanSettings:
    """Turn planning options into settings; a --ratio-for alone leaves everything else as it is.

    Args:
        planning: the options that the user gave.
        data: whether there are inputs, by which more can be judged.
        budget: whether a budget is wanted; without one, nothing is to leave.

    Raises:
        PlanError: there is more than one budget, or one that isn't wanted (OP302).
        UsageError: there is none (OP602).
    """
    from onnxprune.planning.budget import Target
    from onnxprune.workflow.pipeline import PlanSettings

    targets = [Target(*target) for target in planning.get("targets", ())]
    if len(targets) + ("ratio" in planning) + (not budget) > 1:
        raise PlanError("OP302", "give one budget: a --ratio, a --target or a --max-drop")
    if budget and not planning.keys() & {"ratio", "targets", "ratio_for", "remove_blocks"}:
        hint = "for example --target macs=50% or --ratio 0.3"
        raise UsageError("OP602", "no budget: how much is to be removed?", hint=hint)
    constraints = constraints_of(planning)
    rest = {k: planning[k] for k in ("criterion", "allocation", "seed", "remove_blocks") if k in planning}
    channels = bool(planning.keys() & {"ratio", "targets", "ratio_for"}) or not budget
    rest.setdefault("allocation", "reconstruction" if data and channels else "uniform")
    rest.setdefault("criterion", "obs" if rest["allocation"] == "reconstruction" else "l2")
    ratio = planning.get("ratio", None if targets else 0.0)
    return PlanSettings(ratio=ratio, target=next(iter(targets), None), constraints=constraints, **rest)


def constraints_of(planning: Mapping[str, Any]) -> Constraints:
    """Turn planning options into limits on what may leave."""
    from onnxprune.planning.budget import Constraints

    return Constraints(**{name: planning[name] for name in _CONSTRAINTS if name in planning})
