"""Settings made of values by name, and written as values: recipes, keyword arguments, the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from onnxprune.errors import UsageError
from onnxprune.errors.words import did_you_mean
from onnxprune.settings.declare import Settings, declarations, flat
from onnxprune.settings.types import has_share, several

S = TypeVar("S", bound=Settings)


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
                value = [str(each) for each in several(value)]
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
    if isinstance(value, str) and value.endswith("%") and has_share(kind):
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
            hint = did_you_mean(name, known) or f"settings are {', '.join(sorted(known))}"
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
