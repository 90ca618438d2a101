"""Options made from settings classes, and those that several commands share. Defaults are the library's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import click

from onnxprune.cli.failures import COMMAND
from onnxprune.errors import PlanError
from onnxprune.settings import Policies, Settings, Target
from onnxprune.settings.declare import Declared, flat
from onnxprune.settings.planning import Limited
from onnxprune.settings.training import LossName

Function = Callable[..., Any]

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


class Weighted(ParamType[tuple[str, float]]):
    """A word out of some and a number: macs=0.5, kl or kl=0.5."""

    def __init__(self, name: str, words: Collection[str], number: ParamType[float], default: float | None) -> None:
        """Say what the words are, and how the number is read; without a default it must be given."""
        self.name, self.words, self.number, self.default = name, words, number, default

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse a word and its number."""
        if isinstance(value, tuple):
            return value
        word, equals, number = str(value).partition("=")
        if word not in self.words:
            near = get_close_matches(word, self.words, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            self.fail(f"{word!r} is not one of {', '.join(self.words)}{meant}", param, ctx)
        if not equals and self.default is not None:
            return word, self.default
        return word, self.number.convert(number, param, ctx)


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


class SettingOption(click.Option):
    """An option that stands for a field of settings.

    Attributes:
        field: the field's name, by which errors of the library name it.
    """

    def __init__(self, *args: Any, field: str, **kwargs: Any) -> None:
        """Note the field."""
        super().__init__(*args, **kwargs)
        self.field = field


# How values of a type are written, None left out.
_FORMS: Mapping[Any, Any] = {
    Target: Weighted("KIND=SHARE", get_args(Limited), SHARE, None),
    Mapping[LossName, float]: Weighted("NAME[=WEIGHT]", get_args(LossName), click.FLOAT, 1.0),
    tuple[str, Annotated[float, "share"]]: PatternRatio(),
    Annotated[float, "share"]: SHARE,
    int | Literal["auto"]: BlockCount(),
    int: click.INT,
    float: click.FLOAT,
}


def option(declared: Declared) -> Callable[[Function], Function]:
    """Make the option of a setting: its flag, type, default and help are those of the declaration."""
    about, kind = declared.about, _without_none(declared.kind)
    several = kind in (Target, Mapping[LossName, float])  # repeated targets are an error, not the last one
    if get_origin(kind) is tuple:
        kind, several = get_args(kind)[0], True
    settings: dict[str, Any] = {"multiple": several, "default": None, "metavar": about.get("metavar")}
    if kind is bool:
        settings = {"is_flag": True, "flag_value": not declared.default, "default": None}
    elif get_origin(kind) is Literal:
        settings["type"] = click.Choice(get_args(kind))
    else:
        settings["type"] = _FORMS.get(kind, click.STRING)
    shown = about.get("shown", "" if declared.default in (None, ()) or kind is bool else str(declared.default))
    text = about["help"] + (f" [default: {shown}]" if shown else "")
    flag = about.get("flag", "--" + declared.name.replace("_", "-"))
    return click.option(flag, cls=SettingOption, field=declared.name, help=text, **settings)


def of(
    settings: type[Settings], into: str, *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Give a command the options of a settings class; those that the user gave arrive as one argument, by field.

    Args:
        settings: the class; its groups count.
        into: the argument.
        only: the fields that the command has; None for all.
        without: fields that it doesn't have.
    """
    found = [
        declared
        for declared in flat(settings)
        if (only is None or declared.name in only) and declared.name not in without and "by_hand" not in declared.about
    ]

    def decorate(function: Function) -> Function:
        @click.pass_context
        @functools.wraps(function)
        def gathering(context: click.Context, /, *args: Any, **kwargs: Any) -> Any:
            context.meta[COMMAND] = context.command
            given = {}
            for parameter in context.command.params:
                if isinstance(parameter, SettingOption) and parameter.field in names:
                    value = kwargs.pop(str(parameter.name))
                    if value not in (None, ()):
                        given[parameter.field] = _settled(parameter.field, value)
            return function(*args, **{into: given}, **kwargs)

        names = {declared.name for declared in found}
        command: Function = gathering
        for declared in reversed(found):
            command = option(declared)(command)
        return command

    return decorate


def _settled(field: str, value: Any) -> Any:
    """Turn what options were parsed into to what the settings take."""
    if field == "losses":
        return dict(value)
    if field == "target":
        if len(value) > 1:
            raise PlanError("OP302", "there are two targets", where=field, hint="give one of them")
        return Target(*value[0])
    return value


def _without_none(kind: Any) -> Any:
    """Return a type without None: `int | None` is int."""
    args = get_args(kind)
    if NoneType not in args:
        return kind
    rest = [arg for arg in args if arg is not NoneType]
    return functools.reduce(lambda a, b: a | b, rest)


def _full_names(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Turn the providers' short names into ONNX Runtime's own."""
    from onnxprune.runtime.provider import parse_provider

    return tuple(parse_provider(name).name for name in given)


model_argument = click.argument("model", type=click.Path(path_type=Path))


def output(help: str, *, dash: bool = False) -> Callable[[Function], Function]:
    """Return the option for where a command's result goes."""
    return click.option("-o", "--output", required=True, type=click.Path(path_type=Path, allow_dash=dash), help=help)


input_shapes = click.option(
    "--input-shape",
    "input_shapes",
    type=InputShape(),
    multiple=True,
    help="Size of an input whose dimensions are symbolic. Repeatable; the name may be left out "
    "where the model has one input.",
)

inputs = click.option(
    "--input",
    "inputs",
    type=InputFile(),
    multiple=True,
    help="Array to compare on, instead of a generated one. Repeatable; the name may be left out "
    "where the model has one input.",
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

policies = of(Policies, "policies")
