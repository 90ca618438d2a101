"""Shapes that inference can't tell: ONNX Runtime's own operators, and a run that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.shapes import concretize, run_for_shapes
from onnxprune.shapes.fallback import Seen
from tests.shapes.support import (
    FLATTEN,
    Arrays,
    check,
    flatten_by_shape,
    i64,
    model,
    node,
)


def test_an_operator_of_onnx_runtime_is_inferred_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: Seen({}))
    nodes = [
        node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", transB=1),
        *flatten_by_shape("a"),
    ]
    weights = {"w": np.zeros((5, 4), np.float32)} | FLATTEN
    found = check(model(nodes, {"x": ["N", 3, 4]}, ["y"], weights))
    assert found.shapes["a"] == (1, 3, 5)
    assert found.shapes["y"] == (1, 15)


def test_sizes_that_depend_on_data_are_seen_in_a_run() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("NonZero", ["a"], ["where"]),
        node("Transpose", ["where"], ["y"]),
    ]
    proto = model(nodes, {"x": [4, 5]}, ["y"])
    found = concretize(proto)
    assert found.shapes["where"] == found.shapes["y"][::-1]
    assert found.shapes["where"][0] == 2
    assert "where" not in found.values
    seen = run_for_shapes(proto, {"x": (4, 5)}, ["a", "y"]).types
    assert [d.dim_value for d in seen["a"].tensor_type.shape.dim] == [4, 5]


def test_nothing_is_learnt_from_an_empty_result() -> None:
    nodes = [node("Sub", ["x", "x"], ["zeros"]), node("NonZero", ["zeros"], ["y"])]
    found = concretize(model(nodes, {"x": [4, 5]}, ["y"]))
    assert "zeros" in found.shapes
    assert "y" not in found.shapes


def test_an_operator_that_nobody_knows_is_left_out() -> None:
    nodes = [node("Mystery", ["x"], ["a"], domain="my.own"), node("Relu", ["a"], ["y"])]
    proto = model(nodes, {"x": ["N", 4]}, ["y"])
    found = concretize(proto)
    assert set(found.shapes) == {"x"}
    declared = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 8])
    proto.graph.value_info.append(declared)
    assert concretize(proto, {"x": [2, 4]}).shapes["y"] == (2, 8)
    proto.graph.value_info[0].CopyFrom(helper.make_tensor_value_info("a", TensorProto.FLOAT, []))
    assert set(concretize(proto).shapes) == {"x"}


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    ("operator", "attributes", "opset", "inferred"),
    [
        ("MeanVarianceNormalization", {"axes": [2, 3]}, 17, True),  # a function
        ("GroupNormalization", {"num_groups": 1}, 21, False),  # a function that depends on its context
        ("Crop", {"border": [1, 1, 1, 1]}, 7, False),  # without schema
    ],
)
def test_an_unknown_shape_is_no_scalar(
    operator: str,
    attributes: dict[str, Any],
    opset: int,
    inferred: bool,
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not runs:
        monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: Seen({}))
        monkeypatch.setattr("onnxprune.shapes.result.runtime_types", lambda *_: {})
    reads = ["x", "s", "s"] if operator == "GroupNormalization" else ["x"]
    nodes = [node(operator, reads, ["a"], **attributes), node("Relu", ["a"], ["y"])]
    constants = {"s": np.ones(4, np.float32)} if "s" in reads else {}
    proto = model(nodes, {"x": ["N", 4, 5, 5]}, ["y"], constants, opset=opset)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    size = 3 if operator == "Crop" else 5
    shapes = concretize(proto).shapes
    assert {"a", "y"}.isdisjoint(shapes) != (runs or inferred)
    assert shapes.get("a", (1, 4, size, size)) == shapes.get("y", (1, 4, size, size)) == (1, 4, size, size)


@pytest.mark.parametrize(
    ("operator", "reads", "writes"),
    [
        ("TopK", ["x", "k"], ["", "i"]),
        ("TopK", ["known", "k"], ["", "i"]),
        ("LSTM", ["x", "w", "r"], ["", "", "h"]),
        ("Dropout", ["x"], ["", "mask"]),
        ("MaxPool", ["x"], ["", "i"]),
    ],
)
def test_an_output_without_a_name_is_no_tensor(operator: str, reads: list[str], writes: list[str]) -> None:
    given: dict[str, dict[str, Any]] = {"LSTM": {"hidden_size": 2}, "MaxPool": {"kernel_shape": [2]}}
    nodes = [node(operator, reads, writes, **given.get(operator, {})), node("Identity", [writes[-1]], ["y"])]
    constants: Arrays = {
        "k": i64(2),
        "known": np.array([1, 3, 2], np.float32),
        "w": np.ones((1, 8, 4), np.float32),
        "r": np.ones((1, 8, 2), np.float32),
    }
    found = concretize(model(nodes, {"x": ["N", 3, 4]}, ["y"], constants))
    assert "y" in found.shapes
    assert "" not in {*found.shapes, *found.types, *found.values, *found.static}
