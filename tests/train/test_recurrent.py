"""Gradients of recurrent layers, which are written out step by step."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import TrainingError
from tests.train.differences import Case, check, found_gradients

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def layer(name: str, direction: str, *, initial: bool, bias: bool, layout: int = 0, **attributes: object) -> Case:
    rng = np.random.default_rng(3)
    steps, batch, features, hidden, gates = 4, 2, 3, 5, GATES[name]
    d = 2 if direction == "bidirectional" else 1
    x = rng.standard_normal((batch, steps, features) if layout else (steps, batch, features))
    inputs = [x, rng.standard_normal((d, gates * hidden, features)), rng.standard_normal((d, gates * hidden, hidden))]
    if bias or initial:
        inputs.append(rng.standard_normal((d, 2 * gates * hidden)) if bias else None)
    if initial:
        shape = (batch, d, hidden) if layout else (d, batch, hidden)
        inputs += [None, *(rng.standard_normal(shape) for _ in range(1 + (name == "LSTM")))]
    attributes |= {"hidden_size": hidden, "direction": direction} | ({"layout": 1} if layout else {})
    return Case(
        name, [a if a is None else a * 0.6 for a in inputs], attributes, outputs=2 + (name == "LSTM"), runtime=True
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("name", GATES)
def test_directions(name: str, direction: str) -> None:
    check(layer(name, direction, initial=direction != "forward", bias=direction != "reverse"))


def test_reset_before_the_product() -> None:
    check(layer("GRU", "bidirectional", initial=True, bias=True, linear_before_reset=1))


@pytest.mark.parametrize("attributes", [{"clip": 1.0}, {"activations": ["Relu"]}], ids=str)
def test_what_is_not_written_out(attributes: dict[str, object]) -> None:
    case = layer("RNN", "forward", initial=False, bias=True, **attributes)
    with pytest.raises(TrainingError, match="OP902"):
        found_gradients(case, lambda i, shape: np.ones(shape))
