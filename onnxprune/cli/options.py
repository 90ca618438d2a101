"""Options made from settings classes, and options that several commands share. Defaults are the library's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import click

from onnxprune.cli.failures import COMMAND
from onnxprune.errors import PlanError
from onnxprune.errors.words import did_you_mean
from onnxprune.settings import DataSettings, Policies, RunSettings, Settings
from onnxprune.settings.declare import Declared, described, flat
from onnxprune.settings.evaluation import METRICS
from onnxprune.settings.planning import Target, Targets

Function = Callable[..., Any]

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


class Parsed(_ParamType):
    """A parameter type made of a function; the function's ValueError says what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        """Set the name in help texts, and the function."""
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; a default is passed on."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a share such as 0.5 or 50%")
    return float(match[1]) / (100 if match[2] else 1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _count_or_auto(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise ValueError(f"{text!r} is neither a number nor auto")
    return int(text)


def _pattern_ratio(text: str) -> tuple[str, float]:
    pattern, equals, ratio = text.rpartition("=")
    if not (pattern and equals):
        raise ValueError(f"{text!r} is not of the form PATTERN=R")
    return pattern, _share(ratio)


def _state(text: str) -> tuple[str, str]:
    entry, _, exit_ = text.partition("=")
    if not (entry and exit_):
        raise ValueError(f"{text!r} is not of the form IN=OUT")
    return entry, exit_


def _input_shape(text: str) -> tuple[str | None, tuple[int, ...] | int]:
    if match := re.fullmatch(r"([^=]+)=(\d+)", text.strip()):
        return match[1], int(match[2])
    match = re.fullmatch(r"(?:(.+):)?(\d+(?:,\d+)*)", text.replace(" ", ""))  # names may contain colons
    if match is None:
        raise ValueError(f"{text!r} is not of the form NAME:1,3,224,224 or SYMBOL=48")
    return match[1], tuple(int(n) for n in match[2].split(","))


def _input_file(text: str) -> tuple[str | None, Path]:
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    return name, Path(path)


def weighted(name: str, words: Collection[str], number: Callable[[str], float], default: float | None = None) -> Parsed:
    """Return the type of a word with a number, such as macs=0.5; without a default, the number is required."""

    def parse(text: str) -> tuple[str, float]:
        word, equals, value = text.partition("=")
        if word not in words:
            near = did_you_mean(word, words)
            raise ValueError(f"{word!r} is not one of {', '.join(words)}" + (f"; {near}" if near else ""))
        return word, default if not equals and default is not None else number(value)

    return Parsed(name, parse)


def _one_of(words: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def list_of(name: str, item: Callable[[str], Any]) -> Parsed:
    """Return the type of a comma-separated list."""

    def parse(text: str) -> tuple[Any, ...]:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise ValueError(f"{text!r} is not a list such as a,b")
        return tuple(map(item, words))

    return Parsed(name, parse)


def metric_limit(text: str) -> tuple[str, float]:
    """Read a limit of a metric, such as top1=0.9, top1=90% or kl=0.05."""
    metric, equals, value = text.rpartition("=")
    if not (metric and equals):
        raise ValueError(f"{text!r} is not of the form METRIC=VALUE")
    limit = _share(value)
    if metric in METRICS and METRICS[metric].share and not 0 <= limit <= 1:
        meant = f"; did you mean {value.strip()}%?" if 1 < limit <= 100 and "%" not in value else ""
        raise ValueError(f"{value!r} is not a share from 0 to 1{meant}")
    return metric, limit


def factor(text: str) -> float:
    """Read a factor, such as 1.3 or 1.3x."""
    found = _number(text.strip().removesuffix("x"))
    if not 0 < found < float("inf"):
        raise ValueError(f"{text!r} is not a factor above 0")
    return found


def file_limit(text: str) -> tuple[float, bool]:
    """Read a limit of a file's size and whether it is absolute: 5MB, or 50% of another file's."""
    if text.strip().endswith("%") or re.fullmatch(r"\s*0?\.\d+\s*", text):
        found = _share(text)
        if not 0 < found < float("inf"):
            raise ValueError(f"{text!r} is not a share above 0")
        return found, False
    try:
        limit = Target.parse(f"size={text.strip()}")
    except PlanError as error:
        raise ValueError(f"{text!r} is neither a size such as 5MB nor a share such as 50%") from error
    if not limit.absolute:
        raise ValueError(f"{text!r} is neither a size such as 5MB nor a share such as 50%")
    return limit.value, True


SHARE = Parsed("share", _share)


class SettingOption(click.Option):
    """An option for a field of settings.

    Attributes:
        field: the field's name; errors of the library use it.
    """

    def __init__(self, *args: Any, field: str, **kwargs: Any) -> None:
        """Set the field."""
        super().__init__(*args, **kwargs)
        self.field = field


# The parameter type for each type of settings, None left out.
_FORMS: Mapping[Any, Any] = {
    tuple[str, Annotated[float, "share"]]: Parsed("PATTERN=R", _pattern_ratio),
    tuple[str, str]: Parsed("IN=OUT", _state),
    Annotated[float, "share"]: SHARE,
    int | Literal["auto"]: Parsed("N|auto", _count_or_auto),
    int: click.INT,
    float: click.FLOAT,
}


def option(declared: Declared, *, required: bool = False) -> Callable[[Function], Function]:
    """Return the option of a setting, with the flag, type, default and help of its declaration."""
    about, kind = declared.about, _without_none(declared.kind)
    several = kind == Targets or get_origin(kind) is Mapping
    words = get_args(get_args(kind)[0]) if get_origin(kind) is tuple else ()
    if get_origin(kind) is tuple:
        kind, several = get_args(kind)[0], get_origin(get_args(kind)[0]) is not Literal
    flag = about.get("flag", _flag(declared.name))
    settings: dict[str, Any] = {"multiple": several, "metavar": about.get("metavar")}
    if kind is bool and declared.default:
        flag, settings = f"{flag}/--no-{flag[2:]}", {}
    elif kind is bool:
        settings = {"is_flag": True, "flag_value": True}
    elif get_origin(kind) is Literal and words:
        settings["type"] = list_of(",".join(words), _one_of(words))
    elif get_origin(kind) is Literal:
        settings["type"] = click.Choice(get_args(kind))
    elif get_origin(kind) is Mapping:  # a weight for each word
        settings["type"] = weighted("NAME[=WEIGHT]", get_args(get_args(kind)[0]), _number, 1.0)
    else:
        settings["type"] = _FORMS.get(kind, click.STRING)
    repeatable = " Repeatable." if several else ""
    text = described(declared.default, {**about, "help": about["help"] + repeatable})
    text = re.sub(r"`(\w+)`", lambda found: _flag(found[1]), text)
    settings |= {"required": True} if required else {"default": None}  # click takes None for a value
    return click.option(flag, cls=SettingOption, field=declared.name, help=text, **settings)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def of(
    settings: type[Settings], into: str, *, without: Collection[str] = (), required: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Give a command the options of a settings class; the values given by the user are passed as one argument.

    Args:
        settings: the class; fields of its groups are included.
        into: the name of the argument, a dictionary by field.
        without: fields that the command doesn't have.
        required: fields that the user must give.
    """
    found = [
        declared for declared in flat(settings) if declared.name not in without and "by_hand" not in declared.about
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
            command = option(declared, required=declared.name in required)(command)
        return command

    return decorate


def _settled(field: str, value: Any) -> Any:
    """Convert the parsed value of an option to the setting's type."""
    if field == "losses":
        return dict(value)
    if field == "target":
        return value if len(value) > 1 else value[0]
    return value


def _without_none(kind: Any) -> Any:
    """Return a type without None: `int | None` is int."""
    args = get_args(kind)
    if NoneType not in args:
        return kind
    rest = [arg for arg in args if arg is not NoneType]
    return functools.reduce(lambda a, b: a | b, rest)


def _full_names(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return ONNX Runtime's names of providers."""
    from onnxprune.runtime.provider import parse_provider

    return tuple(parse_provider(name).name for name in given)


model_argument = click.argument("model", type=click.Path(path_type=Path))


def output(help: str, *, dash: bool = False) -> Callable[[Function], Function]:
    """Return the option for the output file."""
    return click.option("-o", "--output", required=True, type=click.Path(path_type=Path, allow_dash=dash), help=help)


def file(flag: str, metavar: str, help: str) -> Callable[[Function], Function]:
    """Return an option that names a file."""
    return click.option(flag, type=click.Path(path_type=Path), metavar=metavar, help=help)


def plot(help: str) -> Callable[[Function], Function]:
    """Return the option for the file of a plot."""
    text = f"{help} The suffix is that of an image: .png, .svg, .pdf. Needs matplotlib."
    return file("--plot", "FILE.png", text)


input_shapes = click.option(
    "--input-shape",
    "input_shapes",
    type=Parsed("NAME:1,3,224,224", _input_shape),
    multiple=True,
    help="Shape of an input with symbolic dimensions, or the size of one such dimension: seq=48; synthetic inputs have "
    "these sizes. Repeatable; a model with one input needs no name.",
)

inputs = click.option(
    "--input",
    "inputs",
    type=Parsed("NAME=X.npy", _input_file),
    multiple=True,
    help="Array to run the model on, instead of a generated one. Repeatable; a model with one input needs no name.",
)

providers = click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    callback=_full_names,
    help="Execution provider: cpu, cuda, ... or ONNX Runtime's name of it. Repeatable, in order of preference.",
)

summary = click.option(
    "--summary/--no-summary",
    default=True,
    help="End with what was won and lost, which takes a few seconds to measure: how much faster and smaller the result "
    "is, and how far its answers are those of the original. [default: yes]",
)

recipe = file(
    "--recipe",
    "FILE.toml",
    "File for the recipe, which makes the same model again: `onnxprune run`. [default: OUT.toml]",
)

force = click.option("--force", is_flag=True, help="Overwrite existing files.")

policies = of(Policies, "policies")
sample_data = of(DataSettings, "data", without=("limit",))


def custom_ops(function: Function) -> Function:
    """Give a command the option --custom-ops, and run it with these libraries registered."""

    @functools.wraps(function)
    def registering(*args: Any, running: dict[str, Any], **kwargs: Any) -> Any:
        from onnxprune.runtime.library import custom_ops

        with custom_ops(*running.get("custom_ops", ())):
            return function(*args, **kwargs)

    return of(RunSettings, "running")(registering)
