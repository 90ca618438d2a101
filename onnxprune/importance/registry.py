"""The registry of criteria: built-in ones, those that a program registers, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxprune.errors import PlanError
from onnxprune.errors.words import did_you_mean
from onnxprune.importance.base import Criterion
from onnxprune.runtime import plugins
from onnxprune.runtime.functions import find_function, is_function_name

GROUP = "onnxprune.criteria"
"""The entry-point group for the criteria of a package."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered criterion.

    Attributes:
        function: the criterion.
        reads: what a group must have to be scored, in words for messages; empty if nothing.
        comparable: whether scores of different groups are comparable without scaling.
        data: whether it needs inputs, for `GroupView.activations` or `GroupView.gates`; None if it gets them where
            there are any.
    """

    function: Criterion
    reads: str = ""
    comparable: bool = False
    data: bool | None = False


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
    return {name: find(name).function for name in [*_TABLE, *plugins.installed(GROUP, "criterion")]}


def find(name: str) -> Entry:
    """Return a criterion. Installed packages are searched only if no registered criterion has the name.

    Args:
        name: the name, or module:function of a function of the user's.

    Raises:
        PlanError: there is no criterion of this name (OP308).
        DataError: a function can't be imported (OP710).
        UsageError: the package's criterion can't be loaded (OP607).
    """
    if name in _TABLE:
        return _TABLE[name]
    if is_function_name(name):
        return _entry(find_function(name), None)
    points = plugins.installed(GROUP, "criterion")
    if name not in points:
        known = [*_TABLE, *points]
        hint = did_you_mean(name.lower(), known) or f"there are {', '.join(sorted(known))}, or module:function"
        raise PlanError("OP308", f"there is no criterion {name!r}", hint=hint)
    return _entry(plugins.load(points[name], "criterion"), False)


def _entry(function: Criterion, data: bool | None) -> Entry:
    """Return the entry of an imported function. It may have used the decorator, under any name."""
    return next((e for e in _TABLE.values() if e.function is function), Entry(function, data=data))
