"""Shapes take milliseconds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import ModelProto, NodeProto

from onnxprune.shapes import concretize
from tests.shapes.support import (
    Arrays,
    i64,
    model,
    node,
)


def synthetic(blocks: int) -> ModelProto:
    """Build blocks of Conv, Relu, Add and a reshape to a computed shape: ten nodes each."""
    nodes: list[NodeProto] = []
    last = "x"
    for i in range(blocks):
        nodes += [
            node("Conv", [last, "w"], [f"c{i}"], pads=[1, 1, 1, 1]),
            node("Relu", [f"c{i}"], [f"r{i}"]),
            node("Add", [f"r{i}", last], [f"a{i}"]),
            node("Sigmoid", [f"a{i}"], [f"g{i}"]),
            node("Mul", [f"a{i}", f"g{i}"], [f"m{i}"]),
            node("Shape", [f"m{i}"], [f"s{i}"]),
            node("Gather", [f"s{i}", "swap"], [f"t{i}"]),
            node("Reshape", [f"m{i}", f"t{i}"], [f"v{i}"]),
            node("Reshape", [f"v{i}", f"s{i}"], [f"u{i}"]),
            node("Relu", [f"u{i}"], [f"y{i}"]),
        ]
        last = f"y{i}"
    weights: Arrays = {"w": np.zeros((8, 8, 3, 3), np.float32), "swap": i64(0, 2, 1, 3)}
    return model(nodes, {"x": ["N", 8, 16, 16]}, [last], weights)


def seconds(proto: ModelProto) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        found = concretize(proto)
        times.append(time.process_time() - start)
    assert all(name in found.shapes for n in proto.graph.node for name in n.output)
    return min(times)


@pytest.mark.slow
def test_ten_thousand_nodes_take_a_second_at_most_and_time_is_linear() -> None:
    small, large = seconds(synthetic(100)), seconds(synthetic(1000))
    assert large < 1.0
    assert large < 20 * small
