"""The mechanism behind settings classes: each field is declared once, with its type, range and help.

The declaration gives the check at construction, the docstring of the class, the options of the command line
(`onnxprune.cli.options`) and the JSON form (`dataclasses.asdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from inspect import cleandoc
from numbers import Integral, Real
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from onnxprune.errors import OnnxPruneError, PlanError, UsageError

Share = Annotated[float, "share"]
"""A fraction, such as 0.5. The command line also takes 50%."""

S = TypeVar("S", bound="Settings")

_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
    dict: "a dictionary",
}


def setting(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """Declare a field of a settings class.

    Args:
        default: the default; a class or function is called for it.
        help: the text for the docstring and for the command line, where `` `name` `` becomes the flag of a setting.
        **about: the range (``at_least``, ``above``, ``at_most``, ``below``) of every number in the value; ``least``,
            the minimum length of a tuple; ``read``, which makes a value of text; and how the command line shows the
            setting: ``flag`` (derived from the name by default), ``metavar``, ``shown`` (the default in words), or
            ``by_hand`` if there is no such option.
    """
    about["help"] = help
    return (
        field(default_factory=default, metadata=about) if callable(default) else field(default=default, metadata=about)
    )


def described(default: Any, about: Mapping[str, Any]) -> str:
    """Return the help of a setting, with its default."""
    plain = default in (MISSING, None, ()) or default is False or isinstance(default, Settings)
    shown = about.get("shown", "" if plain else "yes" if default is True else str(default))
    return f"{about['help']} [default: {shown}]" if shown else str(about["help"])


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings that exclude another one, or need it.

    A rule applies to settings that differ from their defaults; "name=value" matches one value only, and "a|b" either.

    Attributes:
        first: a setting.
        others: the settings that exclude or need it; errors name the first one found.
        cause: the error's message, a format string with `first` and `other`.
        hint: the error's hint, likewise.
        forbids: whether the others exclude the first; else they need it.
    """

    first: str
    others: Sequence[str]
    cause: str
    hint: str | None = None
    forbids: bool = True


class Settings:
    """Base of settings classes: frozen dataclasses that check their values at construction.

    A field whose type is a settings class is a group: its fields count as fields of the whole. The docstring of a class
    gets an "Attributes" section made of the declarations.
    """

    __slots__ = ()

    _rules: ClassVar[Sequence[Rule]] = ()
    _error: ClassVar[tuple[type[OnnxPruneError], str]] = (PlanError, "OP303")
    _place: ClassVar[str | None] = None
    """Where errors are located; by default the field's name."""

    def __init_subclass__(cls) -> None:
        """Append the declared fields to the class's docstring."""
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        if cls.__doc__ and declared:  # no fields: the copy that dataclass(slots=True) makes; no docstring: python -OO
            lines = (
                fill(
                    f"{name}: {described(found.default, found.metadata)}",
                    112,
                    initial_indent=" " * 4,
                    subsequent_indent=" " * 8,
                )
                for name, found in declared.items()
            )
            cls.__doc__ = "\n".join([cleandoc(cls.__doc__), "", "Attributes:", *lines])

    def __post_init__(self) -> None:
        """Check every field, and the rules between them.

        Raises:
            OnnxPruneError: a value has the wrong type or is out of range (by default OP303), or two settings contradict
                each other (OP302).
        """
        for declared in declarations(type(self)):
            value = getattr(self, declared.name)
            read = declared.about.get("read")
            if isinstance(value, list) and (read or get_origin(declared.kind) is tuple):
                value = tuple(value)
            if read and isinstance(value, str | tuple):
                parsed = [read(part) if isinstance(part, str) else part for part in _several(value)]
                value = parsed[0] if isinstance(value, str) else tuple(parsed)
            if value is not getattr(self, declared.name):
                object.__setattr__(self, declared.name, value)
            self._check(declared, value)
        values = given(self) if self._rules else {}
        for rule in self._rules:
            others = [name for name in rule.others if _holds(name, values)]
            if others and _holds(rule.first, values) == rule.forbids:
                words = {"first": _quoted(rule.first), "other": _quoted(others[0])}
                hint = None if rule.hint is None else rule.hint.format(**words)
                raise PlanError("OP302", rule.cause.format(**words), hint=hint)

    def _check(self, declared: Declared, value: Any) -> None:
        kind, code = self._error
        place = self._place or declared.name
        if not fits(value, declared.kind):
            wrong, wanted = _misfit(value, declared.kind)
            words = [word for word in literals(wanted) if isinstance(word, str)]
            near = get_close_matches(wrong, words, n=1) if isinstance(wrong, str) else []
            hint = f"did you mean {near[0]}?" if near else None
            raise kind(code, f"{wrong!r} is not {meaning(wanted)}", where=place, hint=hint)
        if isinstance(value, tuple) and len(value) < declared.about.get("least", 0):
            raise kind(code, "at least one is needed", where=place)
        bounds = {name: declared.about[name] for name in _BOUNDS if name in declared.about}

        def allowed(number: float) -> bool:
            return all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items())

        for key, number in numbers(value):
            if not allowed(number):
                must = " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
                hint = share_hint(number, allowed) if _has_share(declared.kind) else None
                raise kind(code, f"{number} is out of range: must be {must}", where=" ".join([place, *key]), hint=hint)


@dataclass(frozen=True, slots=True)
class Declared:
    """A field of a settings class.

    Attributes:
        name: the name.
        kind: the type.
        default: the default.
        about: the help, range and other arguments of `setting`.
        group: the settings class, if the field is a group.
    """

    name: str
    kind: Any
    default: Any
    about: Mapping[str, Any]
    group: type[Settings] | None


def _declarations(settings: type[Settings]) -> tuple[Declared, ...]:
    """Return the fields of a settings class, in order."""
    kinds = get_type_hints(settings, include_extras=True)
    found = []
    for declared in fields(cast(Any, settings)):
        made = None if declared.default_factory is MISSING else declared.default_factory()
        kind, default = kinds[declared.name], declared.default if made is None else made
        group = kind if isinstance(kind, type) and issubclass(kind, Settings) else None
        found.append(Declared(declared.name, kind, default, declared.metadata, group))
    return tuple(found)


declarations = cast(Callable[[type[Settings]], tuple[Declared, ...]], cache(cast(Any, _declarations)))


def flat(settings: type[Settings]) -> Iterator[Declared]:
    """Yield the fields of a settings class, with those of groups in place of the groups."""
    for declared in declarations(settings):
        if declared.group is None:
            yield declared
        else:
            yield from flat(declared.group)


def given(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, including those of groups."""
    found: dict[str, Any] = {}
    for declared in declarations(type(settings)):
        value = getattr(settings, declared.name)
        if declared.group is not None:
            found |= given(value)
        elif value is not declared.default and not (_plain(value) and value == declared.default):
            found[declared.name] = value
    return found


def plain(settings: Settings) -> dict[str, Any]:
    """Return the settings that text can hold, by name, those of groups included; what is None is left out.

    Examples:
        >>> from onnxprune.settings import PlanSettings, Target
        >>> plain(PlanSettings(target=Target("macs", 0.5)))["target"]
        ['macs=0.5']
    """
    found: dict[str, Any] = {}
    for declared in declarations(type(settings)):
        value = getattr(settings, declared.name)
        if declared.group is not None:
            found |= plain(value)
        elif "by_hand" not in declared.about and value is not None:
            if declared.about.get("read"):
                value = [str(each) for each in _several(value)]
            if _textual(value):
                found[declared.name] = value
    return found


def read(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that `plain` wrote or a user did: lists become tuples, and so does a word where several may be.

    Shares may be written as 50%.

    Unknown names are left to `build`.
    """
    kinds = {declared.name: declared.kind for declared in flat(settings)}
    return {name: _from_text(_listed(value, kinds.get(name)), kinds.get(name)) for name, value in values.items()}


def _listed(value: Any, kind: Any) -> Any:
    several = any(get_origin(each) is tuple for each in (kind, *get_args(kind)))
    return [value] if isinstance(value, str) and several else value


def _textual(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_textual, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_textual, value))
    return isinstance(value, bool | int | float | str)


def _from_text(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_text(each, kind) for each in value)
    if isinstance(value, str) and value.endswith("%") and _has_share(kind):
        try:
            return float(value[:-1]) / 100
        except ValueError:
            return value
    return value


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """Return settings with the given values, by name; names of fields of groups are allowed.

    Raises:
        UsageError: a name is unknown (OP602).
        OnnxPruneError: a value isn't allowed, see `Settings`.
    """
    known = {declared.name for declared in (*flat(settings), *declarations(settings))}
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(sorted(known))}"
            raise UsageError("OP602", f"there is no setting {name!r}", hint=hint)
    return _built(settings, values)


def either(kind: type[S], settings: S | None, options: Mapping[str, Any]) -> S:
    """Return the settings, or build them from options by name.

    Raises:
        UsageError: both are given (OP602).
        OnnxPruneError: a value isn't allowed, see `Settings`.
    """
    if settings is not None and options:
        raise UsageError("OP602", f"both settings and {', '.join(options)} are given", hint="drop one")
    return settings or build(kind, options)


def _built(settings: type[S], values: Mapping[str, Any]) -> S:
    own = {}
    for declared in declarations(settings):
        if declared.name in values:
            own[declared.name] = values[declared.name]
        elif declared.group is not None:
            own[declared.name] = _built(declared.group, values)
    return settings(**own)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type; NaN isn't a number here."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = args[:1] * len(value) if args[-1] is ... else args
        return len(parts) == len(value) and all(map(fits, value, parts))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and value == value
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, kind)


def _misfit(value: Any, kind: Any) -> tuple[Any, Any]:
    """Return a value that doesn't fit with its type, or the part that doesn't, where there may be several."""
    for several in (kind, *get_args(kind)):
        if isinstance(value, tuple) and get_origin(several) is tuple and get_args(several)[-1] is ...:
            part = get_args(several)[0]
            return next(((each, part) for each in value if not fits(each, part)), (value, kind))
    return value, kind


def meant_percent(number: float) -> list[str]:
    """Return a hint for a number that was given as a share, if it makes sense as one in per cent."""
    return [f"did you mean {number:g}%?"] if number == 1 or 2 <= number <= 100 else []  # 1.2 was 120%


def share_hint(number: float, allowed: Callable[[float], bool]) -> str:
    """Return a hint for a share that is out of range: a number in per cent, if that would be allowed."""
    asked = meant_percent(number) if allowed(number / 100) else []
    return asked[0] if asked else "write a share such as 5% or 0.05"


def _has_share(kind: Any) -> bool:
    return kind == Share or (get_origin(kind) is not Annotated and any(map(_has_share, get_args(kind))))


def literals(kind: Any) -> Iterator[Any]:
    """Yield the values of all literals in a type."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for arg in get_args(kind):
            yield from literals(arg)


def meaning(kind: Any) -> str:
    """Return a type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return "a share such as 0.5" if args[1] == "share" else meaning(args[0])
    if origin in (Union, UnionType):
        return " or ".join(meaning(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else repr(args[0])
    if origin is tuple:
        inner = [meaning(arg) for arg in args if arg is not ...]
        return f"a tuple of ({', '.join(inner)}{', ...' if args[-1] is ... else ''})"
    if origin is not None:
        return f"a mapping from {meaning(args[0])} to {meaning(args[1])}"
    return _WORDS.get(kind, f"a {kind.__name__}")


def numbers(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the numbers in a value, each with the keys or words that go with it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        yield (), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (((str(key), *words), number) for words, number in numbers(inner))
    elif isinstance(value, tuple):
        words = tuple(part for part in value if isinstance(part, str))
        for inner in value:
            yield from (((*words, *more), number) for more, number in numbers(inner))


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _holds(name: str, values: Mapping[str, Any]) -> bool:
    if "|" in name:
        return any(_holds(each, values) for each in name.split("|"))
    key, _, wanted = name.partition("=")
    found = _several(values.get(key))
    return key in values and (not wanted or any(str(value).partition("=")[0] == wanted for value in found))


def _quoted(name: str) -> str:
    return f"`{name.partition('|')[0].partition('=')[0]}`"


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | NoneType)
