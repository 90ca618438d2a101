"""What each slot of a group is: weight, scale or vector, and whether it reads the units or makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.importance import score, views
from onnxprune.trace import ChannelGraph
from tests.importance.network import Arrays, build

Slots = dict[tuple[str, int], str]


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def node(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), f"{op}_{output}", **attributes)


def slots(graph: ChannelGraph) -> list[Slots]:
    """Every slot's role, weights told apart into those that read and those that make a group's units."""
    return [
        {(r.tensor, r.axis): ("reads" if r.reads else "makes") if r.role == "weight" else r.role for r in v.rows}
        for v in views(graph)
    ]


def test_a_residual_block_reads_and_makes_with_one_weight() -> None:
    arrays: Arrays = {"a": normal(8, 3, 1, 1), "b": normal(8, 8, 3, 3), "c": normal(4, 8, 1, 1)}
    nodes = [
        node("Conv", "x a", "h"),
        node("Relu", "h", "r"),
        node("Conv", "r b", "s", pads=[1] * 4),
        node("Add", "h s", "t"),
        node("Conv", "t c", "y"),
    ]
    assert slots(build(arrays, nodes)) == [
        {("a", 0): "makes", ("b", 0): "makes", ("b", 1): "reads", ("c", 1): "reads"},
    ]


def test_a_depthwise_convolution_makes() -> None:
    arrays: Arrays = {"a": normal(8, 3, 1, 1), "b": normal(8, 1, 3, 3), "bias": normal(8), "c": normal(4, 8, 1, 1)}
    nodes = [node("Conv", "x a", "h"), node("Conv", "h b bias", "s", group=8), node("Conv", "s c", "y")]
    assert slots(build(arrays, nodes)) == [
        {("a", 0): "makes", ("b", 0): "makes", ("bias", 0): "vector", ("c", 1): "reads"},
    ]


def test_integer_operators_have_weights() -> None:
    arrays: Arrays = {
        "a": np.random.default_rng(0).integers(-9, 9, (6, 8), dtype=np.int8),
        "b": np.random.default_rng(1).integers(-9, 9, (8, 4), dtype=np.int8),
    }
    nodes = [
        node("DynamicQuantizeLinear", "x", "q qs qz"),
        node("MatMulInteger", "q a qz", "h"),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Relu", "f", "r"),
        node("DynamicQuantizeLinear", "r", "p ps pz"),
        node("MatMulInteger", "p b pz", "i"),
        node("Cast", "i", "y", to=TensorProto.FLOAT),
    ]
    graph = build(arrays, nodes, x=(2, 6))
    assert slots(graph) == [{("a", 1): "makes", ("b", 0): "reads"}]
    assert not np.isnan(score(graph)[0]).any()


def test_an_embedding_and_a_layer_normalization() -> None:
    arrays: Arrays = {"table": normal(20, 8), "gamma": normal(8), "beta": normal(8), "w": normal(8, 4)}
    nodes = [
        node("Cast", "x", "index", to=TensorProto.INT64),
        node("Gather", "table index", "e"),
        node("LayerNormalization", "e gamma beta", "n"),
        node("MatMul", "n w", "y"),
    ]
    (found,) = slots(build(arrays, nodes, x=(2, 5)))
    assert found == {("table", 1): "makes", ("gamma", 0): "scale", ("beta", 0): "vector", ("w", 0): "reads"}


def test_a_scale_behind_a_cast() -> None:
    arrays: Arrays = {
        "a": normal(8, 3, 1, 1),
        "g": normal(8).astype(np.float16),
        "beta": normal(8),
        "b": normal(4, 8, 1, 1),
    }
    nodes = [
        node("Conv", "x a", "h"),
        node("Cast", "g", "gamma", to=TensorProto.FLOAT),
        node("InstanceNormalization", "h gamma beta", "n"),
        node("Conv", "n b", "y"),
    ]
    assert slots(build(arrays, nodes)) == [
        {("a", 0): "makes", ("g", 0): "scale", ("beta", 0): "vector", ("b", 1): "reads"},
    ]


def test_slopes_and_positions_are_vectors() -> None:
    """What is added or multiplied channel by channel is no weight, whatever its rank."""
    arrays: Arrays = {
        "a": normal(8, 3, 1, 1),
        "slope": normal(8, 1, 1),
        "map": normal(1, 8, 4, 4),
        "b": normal(4, 8, 1, 1),
    }
    nodes = [
        node("Conv", "x a", "h"),
        node("PRelu", "h slope", "p"),
        node("Add", "p map", "s"),
        node("Conv", "s b", "y"),
    ]
    assert slots(build(arrays, nodes)) == [
        {("a", 0): "makes", ("slope", 0): "vector", ("map", 1): "vector", ("b", 1): "reads"},
    ]
