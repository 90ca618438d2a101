"""Every operator with a gradient is compared with finite differences in some test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from onnxprune.operators.card import cards
from tests.train import (
    test_recurrent,
    test_rules_contraction,
    test_rules_elementwise,
    test_rules_movement,
    test_rules_statistics,
)
from tests.train.differences import Case

MODULES = (
    test_recurrent,
    test_rules_contraction,
    test_rules_elementwise,
    test_rules_movement,
    test_rules_statistics,
)
ROUNDING = {"DequantizeLinear", "QuantizeLinear"}
"""Operators whose gradient isn't a derivative by design; `test_forward` and `test_latent` test it."""


def operators_with_gradients() -> set[str]:
    """Return the operators that have a gradient, with their domain in front unless that is ai.onnx."""
    return {name for name, card in cards().items() if card.gradients or card.written_out}


def calls(test: Callable[..., object]) -> Iterator[Mapping[str, Any]]:
    """Return the arguments of each call of a test."""
    choices = []
    for mark in getattr(test, "pytestmark", ()):
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
        sets = mark.args[1] if len(names) > 1 else [(value,) for value in mark.args[1]]
        choices.append([dict(zip(names, values, strict=True)) for values in sets])
    for chosen in product(*choices):
        yield {name: value for arguments in chosen for name, value in arguments.items()}


def test_every_operator_with_a_gradient_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: set[str] = set()

    def record(case: Case, seed: int = 0) -> None:
        checked.add(case.operator)

    for module in MODULES:
        monkeypatch.setattr(module, "check", record)
        for name, test in vars(module).items():
            if name.startswith("test_") and "check" in test.__code__.co_names:
                for arguments in calls(test):
                    test(**arguments)
    assert operators_with_gradients() - checked == ROUNDING
    assert {"Relu", "Conv", "ReduceSum", "LSTM", "com.microsoft:Gelu"} <= checked
