"""The table of gradient rules: for each operator and each of its inputs, the gradient as a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from onnxprune.model.tape import Tensor
    from onnxprune.operators.differentiated import GradientNode

Rule: TypeAlias = "Callable[[GradientNode, Tensor], Tensor]"

_RULES: dict[tuple[str, int | None], Rule] = {}
_FLAT: set[str] = set()


def gradient(*operators: str, of: int | None = 0) -> Callable[[Rule], Rule]:
    """Register the gradient with respect to input ``of`` of operators; None for all inputs alike.

    A rule gets the node and the gradient dy of its first output, and returns the gradient of the input; where that has
    been broadcast, the sum over the broadcast axes is taken for it.
    """

    def register(rule: Rule) -> Rule:
        for operator in operators:
            _RULES[operator, of] = rule
        return rule

    return register


def flat(*operators: str) -> None:
    """Register operators whose outputs don't change with small changes of their inputs: gradients end there."""
    _FLAT.update(operators)


@cache
def rules() -> Mapping[tuple[str, int | None], Rule]:
    """Return the whole table, every rule module loaded."""
    package = import_module("onnxprune.train.rules")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return _RULES


def find(operator: str, index: int) -> Rule | None:
    """Return the rule for an input of an operator, None if there is none."""
    table = rules()
    return table.get((operator, index)) or table.get((operator, None))


def is_flat(operator: str) -> bool:
    """Tell whether gradients end at an operator."""
    rules()
    return operator in _FLAT


def has_rule(operator: str) -> bool:
    """Tell whether anything is known of an operator's gradient."""
    return is_flat(operator) or any(name == operator for name, _ in rules())
