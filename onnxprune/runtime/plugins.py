"""Entry points: functions and classes that installed packages add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onnxprune.errors import UsageError


def installed(group: str, kind: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name; nothing is imported.

    Args:
        group: the entry-point group.
        kind: what the entry points are, in words for messages.

    Raises:
        UsageError: two packages bring one name (OP607).
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if found.setdefault(point.name, point) != point:
            cause = f"two packages have a {kind} {point.name!r}"
            where = f"{_package(found[point.name])} and {_package(point)}"
            raise UsageError("OP607", cause, where=where, hint="uninstall one of them")
    return found


def load(point: EntryPoint, kind: str) -> Callable[..., Any]:
    """Import the function or class that an entry point names.

    Raises:
        UsageError: it can't be imported, or can't be called (OP607).
    """
    package = _package(point)
    where, hint = f"{package}, entry point {point.value}", f"update or uninstall {package}"
    try:
        function: Any = point.load()
    except Exception as error:  # a package's import can raise anything
        cause = f"{kind} {point.name!r} can't be loaded: {type(error).__name__}: {error}"
        raise UsageError("OP607", cause, where=where, hint=hint) from error
    if not callable(function):
        cause = f"{kind} {point.name!r} is a {type(function).__name__}, not a function"
        raise UsageError("OP607", cause, where=where, hint=hint)
    return function  # type: ignore[no-any-return]


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else f"package of {point.module}"
