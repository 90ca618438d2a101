"""Statistics of weights become initializers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.normalize import normalize
from tests.normalize.models import outputs, parsed, same

STANDARDIZED = """
    m (float[n, 4, 6, 6] x) => (float[n, 8, 4, 4] y) {
        mean = ReduceMean <axes = [1, 2, 3]> (w)
        centered = Sub (w, mean)
        deviation = ReduceL2 <axes = [1, 2, 3]> (centered)
        unit = Div (centered, deviation)
        y = Conv (x, unit)
    }
"""


def test_statistics_of_weights_are_numbers() -> None:
    rng = np.random.default_rng(0)
    proto = parsed(STANDARDIZED, w=rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
    result = normalize(proto)
    assert [n.op_type for n in result.graph.node] == ["Sub", "Div", "Conv"]
    assert {"mean", "deviation"} <= {t.name for t in result.graph.initializer}
    feeds = {"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    assert same(outputs(proto, feeds), outputs(result, feeds))
    assert len(normalize(result).graph.node) == 3


def test_statistics_that_are_larger_than_their_weights_stay() -> None:
    text = """
        m (float[8, 8] x) => (float[8, 8] y) {
            table = Add (row, column)
            shares = Softmax (table)
            y = Mul (x, shares)
        }
    """
    row, column = np.ones((1, 8), np.float32), np.ones((8, 1), np.float32)
    assert [n.op_type for n in normalize(parsed(text, row=row, column=column)).graph.node] == ["Add", "Softmax", "Mul"]
    # Negative control: of a weight of that size they are computed.
    whole = normalize(parsed(text, row=np.ones((8, 8), np.float32), column=column))
    assert [n.op_type for n in whole.graph.node] == ["Mul"]


def test_statistics_of_enormous_tensors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        m (float[8] x) => (float[8] y) {
            table = Add (row, column)
            mean = ReduceMean <axes = [0]> (table)
            y = Add (x, mean)
        }
    """
    proto = parsed(text, row=np.ones((1, 1), np.float32), column=np.ones((64, 8), np.float32))
    assert [n.op_type for n in normalize(proto).graph.node] == ["Add"]  # the control: of 512 elements
    monkeypatch.setattr("onnxprune.normalize.statistics._MOST_ELEMENTS", 2**8)
    assert [n.op_type for n in normalize(proto).graph.node] == ["Add", "ReduceMean", "Add"]


def test_statistics_of_noise_or_of_what_cannot_be_computed_stay() -> None:
    noise = """
        m (float[3] x) => (float[3] y) {
            drawn = RandomNormalLike (w)
            mean = ReduceMean <axes = [0]> (drawn)
            y = Add (x, mean)
        }
    """
    w = np.ones(4, np.float32)
    assert [n.op_type for n in normalize(parsed(noise, w=w)).graph.node] == ["RandomNormalLike", "ReduceMean", "Add"]
    broken = "m (float[3] x) => (float[3] y) { mean = ReduceMean <axes = [7]> (w) y = Add (x, mean) }"
    assert [n.op_type for n in normalize(parsed(broken, w=w)).graph.node] == ["ReduceMean", "Add"]
