"""The mechanism behind settings classes: each field is declared once, with its type, range and help.

The declaration gives the check at construction, the docstring of the class, the options of the command line
(`onnxprune.cli.options`) and the JSON form (`dataclasses.asdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from inspect import cleandoc
from textwrap import fill
from types import NoneType
from typing import Any, ClassVar, cast, get_origin, get_type_hints

from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.errors.words import did_you_mean
from onnxprune.settings.types import fits, has_share, literals, meaning, misfit, numbers, several, share_hint

_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
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
                parsed = [read(part) if isinstance(part, str) else part for part in several(value)]
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
            wrong, wanted = misfit(value, declared.kind)
            words = [word for word in literals(wanted) if isinstance(word, str)]
            hint = did_you_mean(wrong, words) if isinstance(wrong, str) else None
            raise kind(code, f"{wrong!r} is not {meaning(wanted)}", where=place, hint=hint)
        if isinstance(value, tuple) and len(value) < declared.about.get("least", 0):
            raise kind(code, "at least one is needed", where=place)
        bounds = {name: declared.about[name] for name in _BOUNDS if name in declared.about}

        def allowed(number: float) -> bool:
            return all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items())

        for key, number in numbers(value):
            if not allowed(number):
                must = " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
                hint = share_hint(number, allowed) if has_share(declared.kind) else None
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


def _holds(name: str, values: Mapping[str, Any]) -> bool:
    if "|" in name:
        return any(_holds(each, values) for each in name.split("|"))
    key, _, wanted = name.partition("=")
    found = several(values.get(key))
    return key in values and (not wanted or any(str(value).partition("=")[0] == wanted for value in found))


def _quoted(name: str) -> str:
    return f"`{name.partition('|')[0].partition('=')[0]}`"


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | NoneType)
