"""What doesn't fit is said; what is damaged raises nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.shapes import concretize
from tests.shapes.support import (
    FLATTEN,
    check,
    flatten_by_shape,
    model,
    node,
)

RELU = model([node("Relu", ["image"], ["y"])], {"image": ["N", 3, "H", "H"]}, ["y"])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"imgae": [1, 3, 8, 8]}, 'did you mean "image"?'),
        ({"other": [1, 3, 8, 8]}, "inputs: image"),
        ({"image": [1, 3, 8]}, "3 sizes for 4 axes"),
        ({"image": [1, 4, 8, 8]}, "axis 1 is fixed at 3 by the model, not 4"),
        ({"image": [1, 3, 8, 9]}, 'axis 3 is fixed at 8 by another "H", not 9'),
        ({"image": [0, 3, 8, 8]}, "sizes are positive"),
        ({"image": [1, 3, 8, -1]}, "sizes are positive"),
        ({"image": [1, 3, 8, 8.5]}, "sizes are whole numbers"),
    ],
)
def test_input_shapes_that_do_not_fit(shapes: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        concretize(RELU, shapes)
    assert caught.value.code == "OP603"
    assert words in str(caught.value)


def test_numpy_sizes_are_sizes() -> None:
    found = concretize(RELU, {"image": np.array([2, 3, 8, 8])})  # type: ignore[dict-item]
    assert found.inputs["image"] == (2, 3, 8, 8)


def test_an_input_without_rank_needs_a_shape() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    with pytest.raises(ModelError, match="`input_shapes`, for example x:1,3,224,224") as caught:
        concretize(proto)
    assert caught.value.code == "OP124"
    assert concretize(proto, {"x": [2, 3]}).shapes["y"] == (2, 3)


def test_an_input_without_type_is_no_crash() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert set(concretize(proto).shapes) <= {"x", "y"}


def test_a_scalar_input_has_a_shape() -> None:
    assert check(model([node("Relu", ["x"], ["y"])], {"x": []}, ["y"])).inputs == {"x": ()}


def test_an_input_of_size_zero_is_refused() -> None:
    with pytest.raises(ModelError, match="size zero") as caught:
        concretize(model([node("Relu", ["x"], ["y"])], {"x": ["N", 0, 4]}, ["y"]))
    assert caught.value.code == "OP111"


@pytest.mark.parametrize("given", [None, {"x": [1, 3, 40, 40]}])
def test_no_size_fits(given: Mapping[str, Sequence[int]] | None) -> None:
    nodes = [
        node("Flatten", ["x"], ["flat"]),
        node("Gemm", ["flat", "fc"], ["y"], transB=1, name="classifier"),
    ]
    weights = {"fc": np.zeros((2, 3 * 37 * 37), np.float32)}
    proto = model(nodes, {"x": ["N", 3, "S", "S"]}, ["y"], weights)
    with pytest.raises(ModelError) as caught:
        concretize(proto, given)
    assert caught.value.code == "OP125"
    assert 'Gemm "classifier"' in str(caught.value)
    assert "`input_shapes`: x:" in str(caught.value)
    assert check(proto, {"x": [1, 3, 37, 37]}).shapes["y"] == (1, 2)


def test_a_given_size_that_onnx_refuses() -> None:
    proto = model([node("Add", ["x", "b"], ["y"])], {"x": ["N", "C"], "b": [1, 5]}, ["y"])
    with pytest.raises(ModelError) as caught:
        concretize(proto, {"x": [1, 4]})
    assert caught.value.code == "OP125"
    assert "Incompatible dimensions" in str(caught.value)


def test_a_model_that_contradicts_itself_is_for_onnx_runtime_to_judge() -> None:
    proto = model([node("Add", ["x", "b"], ["y"])], {"x": [3, 4], "b": [3, 5]}, ["y"])
    assert "y" not in concretize(proto).shapes


@pytest.mark.parametrize("seed", range(20))
def test_damaged_nodes_raise_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    proto = model(flatten_by_shape(), {"x": ["N", 3, 4, 4]}, ["y"], FLATTEN)
    for _ in range(3):
        victim = proto.graph.node[rng.integers(len(proto.graph.node))]
        match rng.integers(5):
            case 0:
                victim.op_type = str(rng.choice(["Conv", "Gemm", "Loop", "Nothing", "Shape"]))
            case 1 if victim.input:
                del victim.input[-1]
            case 2:
                victim.attribute.append(helper.make_attribute("axis", int(rng.integers(-9, 9))))
            case 3:
                victim.output.append("more")
            case _:
                victim.input.append("shape")
    with contextlib.suppress(OnnxPruneError):
        concretize(proto)


@pytest.mark.parametrize(("pad", "shape"), [(0, (1, 3, 8)), (9, None)])
def test_a_negative_size_is_not_believed(pad: int, shape: tuple[int, ...] | None) -> None:
    """onnx infers it, and what follows would ask for an array of that size."""
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[1, 2, 6] x, float[2, 3, 3] w) => (int64[3] y) {{
        made = ConvTranspose <pads = [{pad}, {pad}]> (x, w)
        y = Shape(made)
    }}"""
    assert concretize(parser.parse_model(text)).shapes.get("made") == shape
