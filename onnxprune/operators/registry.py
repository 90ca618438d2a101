"""The table of rules: one short function per operator says how channel ids pass through it, another how to rewrite it.

An operator is named by its type, with its domain in front unless that is ai.onnx: ``Conv``, ``com.microsoft:Gelu``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from onnxprune.operators.edit import RewriteNode
    from onnxprune.operators.traced import TraceNode

Trace = Callable[["TraceNode"], None]
Rewrite = Callable[["RewriteNode"], None]
_F = TypeVar("_F", Trace, Rewrite)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of an operator.

    Attributes:
        trace: passes channel ids from inputs to outputs; None for an operator that is deliberately left alone.
        rewrite: adapts attributes and parameters once channels are gone; None where nothing depends on their number.
        reason: for an operator left alone, why.
    """

    trace: Trace | None = None
    rewrite: Rewrite | None = None
    reason: str | None = None


_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Trace], Trace]:
    """Register a function as the tracing rule of operators."""

    def register(trace: Trace) -> Trace:
        for operator in operators:
            _RULES[operator] = replace(_RULES.get(operator, Rule()), trace=trace)
        return trace

    return register


def rewrites(*operators: str) -> Callable[[Rewrite], Rewrite]:
    """Register a function as the rewriting rule of operators."""

    def register(rewrite: Rewrite) -> Rewrite:
        for operator in operators:
            _RULES[operator] = replace(_RULES.get(operator, Rule()), rewrite=rewrite)
        return rewrite

    return register


def leave(reason: str, *operators: str) -> None:
    """Register operators as deliberately left alone: what touches them is pinned with this reason."""
    for operator in operators:
        _RULES[operator] = Rule(reason=reason)


def operator_key(domain: str, op_type: str) -> str:
    """Return an operator's name in the table."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}:{op_type}"


def rules() -> Mapping[str, Rule]:
    """Return the whole table, every rule module loaded."""
    package = import_module("onnxprune.operators")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return _RULES
