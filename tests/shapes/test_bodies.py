"""Shapes inside bodies of If and Loop, and values that come out of them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.normalize import normalize
from onnxprune.shapes import concretize
from onnxprune.shapes.fallback import Seen
from tests.shapes.support import (
    check,
    i64,
    model,
    node,
)


def test_a_branch_sees_the_outer_tensors() -> None:
    branches = {
        name: helper.make_graph(
            [node(op, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        node("ReduceMax", ["x"], ["max"], keepdims=0),
        node("Cast", ["max"], ["cond"], to=TensorProto.BOOL),
        node("If", ["cond"], ["y"], then_branch=branches["then"], else_branch=branches["else"]),
    ]
    assert check(model(nodes, {"x": ["N", 3]}, ["y"])).shapes["y"] == (1, 3)


@pytest.mark.parametrize(("rank", "sizes"), [(4, (2, 3)), (9, (6,))])
def test_values_come_out_of_the_branch_that_runs(
    rank: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: Seen({}))
    branches = {
        name: helper.make_graph(
            [node("Identity", [of], [name])], name, [], [helper.make_tensor_value_info(name, TensorProto.INT64, None)]
        )
        for name, of in (("then", "long"), ("else", "short"))
    }
    nodes = [
        node("Size", ["x"], ["size"]),
        node("Less", ["size", "rank"], ["cond"]),
        node("If", ["cond"], ["target"], then_branch=branches["else"], else_branch=branches["then"]),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"rank": i64(rank), "long": i64(2, 3), "short": i64(6)}
    proto = normalize(model(nodes, {"x": [3, 2]}, ["y"], weights))
    found = check(proto)
    assert found.shapes["y"] == sizes
    assert tuple(found.values["target"]) == sizes


def test_a_loop_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.shapes.fallback._RUN_SECONDS", 0.2)
    body = helper.make_graph(
        [node("Identity", ["on"], ["more"]), node("Concat", ["h", "h0"], ["g"], axis=0)],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("g", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.zeros(0, np.float32), "h0")],
    )
    proto = model(
        [node("Loop", ["", "true", "x"], ["y"], body=body)],
        {"x": ["N"]},
        ["y"],
        {"true": np.array(True)},
    )
    start = time.perf_counter()
    assert "y" not in concretize(proto).shapes
    assert time.perf_counter() - start < 10
