"""The registry of criteria: built-in ones, those that a program registers, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onnxprune.errors import PlanError, UsageError
from onnxprune.importance.base import Criterion

GROUP = "onnxprune.criteria"
"""The entry-point group for the criteria of a package."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered criterion.

    Attributes:
        function: the criterion.
        reads: what a group must have to be scored, in words for messages; empty if nothing.
        comparable: whether scores of different groups are comparable without scaling.
        data: whether it needs inputs, for `GroupView.activations` or `GroupView.gates`.
    """

    function: Criterion
    reads: str = ""
    comparable: bool = False
    data: bool = False


_TABLE: dict[str, Entry] = {}


def criterion(
    name: str, *, reads: str = "", comparable: bool = False, data: bool = False
) -> Callable[[Criterion], Criterion]:
    """Register a function as a criterion.

    Args:
        name: the name for users.
        reads: what a group must have to be scored, in words for messages.
        comparable: whether scores of different groups are comparable without scaling.
        data: whether it needs inputs, for `GroupView.activations` or `GroupView.gates`.
    """

    def register(function: Criterion) -> Criterion:
        _TABLE[name] = Entry(function, reads, comparable, data)
        return function

    return register


def criteria() -> Mapping[str, Criterion]:
    """Return all criteria by name, registered ones before those of installed packages.

    Raises:
        UsageError: a package's criterion can't be loaded (OP607).
    """
    return {name: find(name).function for name in [*_TABLE, *_plugins()]}


def find(name: str) -> Entry:
    """Return a criterion. Installed packages are searched only if no registered criterion has the name.

    Raises:
        PlanError: there is no criterion of this name (OP308).
        UsageError: the package's criterion can't be loaded (OP607).
    """
    if name in _TABLE:
        return _TABLE[name]
    plugins = _plugins()
    if name not in plugins:
        known = [*_TABLE, *plugins]
        close = get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise PlanError("OP308", f"there is no criterion {name!r}", hint=hint)
    function = _load(plugins[name])
    # A package may have used the decorator, under any name.
    return next((e for e in _TABLE.values() if e.function is function), Entry(function))


def _plugins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point) != point:
            cause = f"two packages have a criterion {point.name!r}"
            where = f"{_package(found[point.name])} and {_package(point)}"
            raise UsageError("OP607", cause, where=where, hint="uninstall one of them")
    return found


def _load(point: EntryPoint) -> Criterion:
    try:
        function: Any = point.load()
    except Exception as error:  # a package's import can raise anything
        cause = f"criterion {point.name!r} can't be loaded: {type(error).__name__}: {error}"
        raise _broken(point, cause) from error
    if not callable(function):
        kind = type(function).__name__
        raise _broken(point, f"criterion {point.name!r} is a {kind}, not a function")
    return function  # type: ignore[no-any-return]


def _broken(point: EntryPoint, cause: str) -> UsageError:
    package = _package(point)
    where, hint = f"{package}, entry point {point.value}", f"update or uninstall {package}"
    return UsageError("OP607", cause, where=where, hint=hint)


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else f"package of {point.module}"
