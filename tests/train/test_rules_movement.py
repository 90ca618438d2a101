"""Gradients of operators that move data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.train.differences import Case, check, found_gradients


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 6, 4, 4))
APART = RNG.permutation(5 * X[0].size).reshape(5, *X.shape[1:]) * 0.01 + 0.5  # no two are close
CASES = {
    "Reshape": Case("Reshape", [X, ints(2, -1)]),
    "Flatten": Case("Flatten", [X], {"axis": 2}),
    "Squeeze": Case("Squeeze", [X[:1], ints(0)]),
    "Unsqueeze": Case("Unsqueeze", [X, ints(0, 3)]),
    "Transpose": Case("Transpose", [X], {"perm": [0, 3, 1, 2]}),
    "Transpose, reversed": Case("Transpose", [X]),
    "Expand": Case("Expand", [X[:, :1], ints(3, 1, 6, 1, 4)[1:]]),
    "Expand, new axis": Case("Expand", [X, ints(3, 2, 1, 4, 4)]),
    "Tile": Case("Tile", [X, ints(1, 2, 3, 1)]),
    "Concat": Case("Concat", [X, X[:, :2], X[:, 1:4]], {"axis": 1}),
    "Concat, last": Case("Concat", [X, X[..., :1]], {"axis": -1}),
    "Split": Case("Split", [X, ints(1, 3, 2)], {"axis": 1}, outputs=3),
    "Split, equal": Case("Split", [X], {"axis": 1, "num_outputs": 3}, outputs=3),
    "DepthToSpace": Case("DepthToSpace", [RNG.standard_normal((2, 8, 2, 3))], {"blocksize": 2}),
    "DepthToSpace, CRD": Case("DepthToSpace", [RNG.standard_normal((2, 8, 2, 3))], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": Case("SpaceToDepth", [X], {"blocksize": 2}),
    "Trilu": Case("Trilu", [X], {"upper": 0}),
    "Trilu, shifted": Case("Trilu", [X, np.array(1, np.int64)], {"upper": 1}),
    "CumSum": Case("CumSum", [X, np.array(2, np.int64)]),
    "CumSum, exclusive": Case("CumSum", [X, np.array(2, np.int64)], {"exclusive": 1, "reverse": 1}),
    "Slice": Case("Slice", [X, ints(1, 0), ints(5, 3), ints(1, 3)]),
    "Slice, open": Case("Slice", [X, ints(-3), ints(2**63 - 1), ints(2)]),
    "Slice, stepped": Case("Slice", [X, ints(0, 3), ints(6, -5), ints(1, 2), ints(2, -1)]),
    "Gather": Case("Gather", [X, ints(3, 0, 3, -1)], {"axis": 1}),
    "Gather, scalar": Case("Gather", [X, np.array(2, np.int64)], {"axis": 1}),
    "Gather, matrix": Case("Gather", [X, np.array([[0, 1], [1, 1]], np.int64)], {"axis": 0}),
    "GatherElements": Case("GatherElements", [X, RNG.integers(0, 6, (2, 3, 4, 4))], {"axis": 1}),
    "GatherND": Case("GatherND", [X, np.array([[0, 1], [1, 5], [0, 1]], np.int64)]),
    "ScatterND": Case("ScatterND", [X, ints(1)[:, None], X[:1]]),
    "ScatterND, added": Case("ScatterND", [X, ints(1, 1)[:, None], X], {"reduction": "add"}),
    "ScatterElements": Case("ScatterElements", [X, np.zeros((2, 1, 4, 4), np.int64) + 2, X[:, :1]], {"axis": 1}),
    "ScatterElements, added": Case(
        "ScatterElements", [X, RNG.integers(0, 6, X.shape), X[:, ::-1]], {"axis": 1, "reduction": "add"}
    ),
    "Pad": Case("Pad", [X, ints(0, 1, 2, 0, 1, 0, 0, 3)]),
    "Pad, cropping": Case("Pad", [X, ints(0, -1, 2, 0, 1, 0, -1, 3)]),
    "Pad, axes": Case("Pad", [X, ints(1, 2, 0, 1), None, ints(1, 3)]),
    "Pad, reflect": Case("Pad", [X, ints(0, 0, 2, 1, 0, 0, 3, 0)], {"mode": "reflect"}),
    "Pad, edge": Case("Pad", [X, ints(0, 0, 2, 1, 0, 0, 3, 0)], {"mode": "edge"}),
    "Pad, wrap": Case("Pad", [X, ints(0, 0, 2, 1, 0, 0, 3, 0)], {"mode": "wrap"}, opset=19),
}


@pytest.mark.parametrize("name", CASES)
def test_movement(name: str) -> None:
    case = CASES[name]
    check(Case(case.operator, case.inputs, case.attributes, outputs=case.outputs, linear=True, opset=case.opset))


RESIZES: list[tuple[dict[str, Any], list[np.ndarray | None]]] = [
    ({"mode": mode, "coordinate_transformation_mode": place}, amount)
    for mode in ("nearest", "linear", "cubic")
    for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    for amount in ([None, np.array([1, 1, 2, 1.5], np.float32)], [None, None, ints(2, 6, 7, 3)])
    if mode != "nearest" or place != "pytorch_half_pixel"
]


@pytest.mark.parametrize("number", range(len(RESIZES)))
def test_resize(number: int) -> None:
    attributes, amount = RESIZES[number]
    check(Case("Resize", [X, *amount], attributes, of=[0], linear=True))


def test_resize_of_some_axes() -> None:
    attributes = {"mode": "linear", "axes": [2, 3], "antialias": 1}
    check(Case("Resize", [X, None, None, ints(2, 3)], attributes, of=[0], linear=True))
    check(
        Case("Resize", [X, None, None, ints(2, 6, 2, 3)], {"mode": "cubic", "cubic_coeff_a": -0.5}, of=[0], linear=True)
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2, 3), (1.5, 1.3), (0.6, 0.7)])
def test_resizing_before_opset_11(mode: str, scales: tuple[float, float]) -> None:
    """Upsample is converted to Resize; both used to compute positions differently from Resize today."""
    operators = [("Resize", 10)] + [("Upsample", 9)] * (min(scales) >= 1)
    for operator, opset in operators:
        amount = np.array([1, 1, *scales], np.float32)
        check(Case(operator, [X, amount], {"mode": mode}, of=[0], linear=True, opset=opset))


@pytest.mark.parametrize("reduction", ["mul", "max", "min"])
@pytest.mark.parametrize("name", ["ScatterElements", "ScatterND"])
def test_a_scatter_that_reduces(name: str, reduction: str) -> None:
    index = ints(1, 0, 1)[:, None] if name == "ScatterND" else RNG.integers(0, 2, APART[2:].shape)
    check(Case(name, [APART[:2], index, APART[2:]], {"reduction": reduction}, runtime=True))


def test_an_extreme_divides_its_gradient_among_equals() -> None:
    """Of three equal elements that meet, each has a third."""
    inputs = [np.array([[2.0, 1.0]]), ints(0, 0)[:, None], np.array([[2.0, 3.0], [2.0, 0.0]])]
    case = Case("ScatterND", inputs, {"reduction": "max"}, runtime=True)
    found = found_gradients(case, lambda i, shape: np.ones(tuple(shape)))
    assert np.allclose(found["x0"], [[1 / 3, 0]])
    assert np.allclose(found["x2"], [[1 / 3, 1], [1 / 3, 0]])
