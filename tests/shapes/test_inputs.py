"""The sizes that symbolic inputs get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.shapes import concretize
from tests.shapes.support import (
    Arrays,
    Size,
    check,
    model,
    node,
)


def conv(*, channels: int = 3) -> Arrays:
    return {"w": np.zeros((8, channels, 3, 3), np.float32)}


def test_images_get_a_usual_size_and_symbols_agree() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Add", ["a", "mask"], ["y"])]
    proto = model(nodes, {"x": ["N", 3, "H", "W"], "mask": ["N", 8, None, None]}, ["y"], conv())
    found = concretize(proto)
    assert found.inputs["x"] == (1, 3, 224, 224)
    assert found.symbols["H"] == found.symbols["W"] == 224


def test_a_symbol_has_one_size_everywhere() -> None:
    nodes = [node("Concat", ["a", "b"], ["y"], axis=2)]
    proto = model(nodes, {"a": ["N", "T", 4], "b": ["N", "T", 2]}, ["y"])
    assert check(proto).shapes["y"] == (1, 16, 6)
    assert check(proto, {"b": [3, 7, 2]}).inputs == {"a": (3, 7, 4), "b": (3, 7, 2)}


def test_a_symbol_that_leads_anywhere_is_a_batch() -> None:
    proto = model([node("Add", ["x", "state"], ["y"])], {"state": [2, "B", 4], "x": ["B", 4]}, ["y"])
    assert check(proto).inputs["state"] == (2, 1, 4)


def test_nameless_dimensions_are_independent() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["None", 3, "None", "?"]}, ["y"])
    found = check(proto)
    assert found.inputs["x"] == (1, 3, 224, 224)
    assert found.symbols == {"x[0]": 1, "x[2]": 224, "x[3]": 224}
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert concretize(proto).inputs["x"] == (1, 3, 224, 224)


@pytest.mark.parametrize("size", [32, 64, 96, 299])
def test_the_size_fits_the_fully_connected_layer(size: int) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
        node("Flatten", ["a"], ["flat"]),
        node("Gemm", ["flat", "fc"], ["y"], transB=1),
    ]
    features = 8 * ((size - 3) // 2 + 1) ** 2
    weights: Arrays = {**conv(), "fc": np.zeros((2, features), np.float32)}
    found = check(model(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], weights))
    assert found.inputs["x"] == (1, 3, size, size)


def test_channels_fit_the_convolution() -> None:
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": ["N", "C", "H", "W"]}, ["y"], conv(channels=1))
    assert check(proto).inputs["x"] == (1, 1, 224, 224)


def test_sizes_of_two_symbols_are_found_one_after_the_other() -> None:
    nodes = [node("Concat", ["past", "x"], ["both"], axis=1), node("Add", ["both", "mask"], ["y"])]
    inputs: dict[str, Sequence[Size] | None] = {"past": [1, "P", 4], "x": [1, "T", 4], "mask": [1, "P+T", 1]}
    found = check(model(nodes, inputs, ["y"]))
    assert found.symbols["P"] + found.symbols["T"] == found.symbols["P+T"]


def test_channels_last_images() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N", None, None, 3]}, ["y"])
    assert check(proto).inputs["x"] == (1, 224, 224, 3)


def test_initializers_are_no_inputs() -> None:
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, 8, 8]}, ["y"], conv())
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, ["any", "thing", 3, 3])
    proto.graph.input.append(weight)
    found = check(proto)
    assert set(found.inputs) == {"x"}
    assert found.shapes["w"] == (8, 3, 3, 3)
