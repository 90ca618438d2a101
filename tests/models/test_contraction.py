from __future__ import annotations

from typing import Any

import pytest
from onnx import helper

from models.contraction import contraction


@pytest.mark.parametrize(
    ("op", "shape", "index", "attributes", "axes", "terms"),
    [
        ("Conv", (32, 16, 3, 3), 1, {}, (1, 2, 3), 144),
        ("Conv", (32, 1, 3, 3), 1, {"group": 32}, (1, 2, 3), 9),
        ("Conv", (32, 16, 5), 1, {}, (1, 2), 80),
        ("ConvTranspose", (16, 32, 4, 4), 1, {}, (0, 2, 3), 256),
        ("ConvTranspose", (16, 32, 4, 4), 1, {"strides": [2, 2]}, (0, 2, 3), 64),
        ("ConvTranspose", (16, 8, 4, 4), 1, {"strides": [2, 2], "group": 4}, (0, 2, 3), 16),
        ("Gemm", (16, 32), 1, {}, (0,), 16),
        ("Gemm", (32, 16), 1, {"transB": 1}, (1,), 16),
        ("Gemm", (32, 16), 0, {}, (1,), 16),
        ("Gemm", (16, 32), 0, {"transA": 1, "transB": 1}, (0,), 16),
        ("MatMul", (16, 32), 1, {}, (0,), 16),
        ("MatMul", (4, 16, 32), 1, {}, (1,), 16),
        ("MatMul", (16,), 1, {}, (0,), 16),
        ("MatMul", (32, 16), 0, {}, (1,), 16),
    ],
)
def test_summed_axes(
    op: str,
    shape: tuple[int, ...],
    index: int,
    attributes: dict[str, Any],
    axes: tuple[int, ...],
    terms: int,
) -> None:
    inputs = ["x", "x"]
    inputs[index] = "w"
    layer = contraction(helper.make_node(op, inputs, ["y"], **attributes), {"w": shape})

    assert layer is not None
    assert (layer.data, layer.weight, layer.shape) == ("x", "w", shape)
    assert layer.axes == axes
    assert layer.terms == terms


@pytest.mark.parametrize(("op", "inputs"), [("Add", ["x", "w"]), ("MatMul", ["x", "x"]), ("MatMul", ["w", "w"])])
def test_anything_else_is_none(op: str, inputs: list[str]) -> None:
    assert contraction(helper.make_node(op, inputs, ["y"]), {"w": (16, 16)}) is None
