"""The sizes that symbolic inputs get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.session import session
from onnxprune.normalize import normalize
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
    assert check(proto).shapes["y"] == (1, 8, 6)
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


@pytest.mark.parametrize("baked", [3, 13, 48])
def test_a_length_that_the_exporter_baked_in_is_found_and_said(baked: int) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("Reshape", ["t", "heads"], ["h"], name="split"),
        node("Relu", ["h"], ["y"]),
    ]
    heads = {"heads": np.array([baked, 4, 8])}
    proto = model(nodes, {"x": ["N", "T", 32]}, ["y"], heads)
    found = concretize(proto)
    assert found.inputs["x"] == (1, baked, 32)
    assert found.notes == (f'a size is fixed inside the model, at Reshape "split"; it runs with T = {baked}, N = 1',)
    outputs = session(proto).run(None, {"x": np.zeros(found.inputs["x"], np.float32)})
    assert outputs[0].shape == found.shapes["y"]
    with pytest.raises(ModelError, match=r"OP125.*split.*can't reshape") as caught:
        concretize(proto, {"T": baked + 1, "N": 1})
    assert "give sizes that fit" in str(caught.value.hint)


def test_no_note_where_any_size_fits() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N", "T", 32]}, ["y"])
    assert concretize(proto).notes == ()


@pytest.mark.parametrize(
    ("dims", "sizes"),
    [
        (["N", 12, "past", 64], (1, 12, 8, 64)),  # a cache
        (["N", 1, 80, "T"], (1, 1, 80, 8)),  # a spectrogram
        (["batch", 1, "seq", "seq"], (1, 1, 8, 8)),  # a mask
        (["N", 3, 224, "W"], (1, 3, 224, 224)),
        (["N", "C", "height", "width"], (1, 3, 224, 224)),
        (["ids", "length"], (1, 8)),
    ],
)
def test_only_sizes_of_images_are_large(dims: Sequence[Size], sizes: tuple[int, ...]) -> None:
    assert check(model([node("Relu", ["x"], ["y"])], {"x": dims}, ["y"])).inputs["x"] == sizes


def test_a_window_needs_a_length() -> None:
    wave = {"w": np.zeros((4, 1, 400), np.float32)}
    proto = model([node("Conv", ["x", "w"], ["y"], strides=[160])], {"x": ["N", 1, "samples"]}, ["y"], wave)
    assert check(proto).inputs["x"] == (1, 1, 512)


def test_a_symbol_that_is_a_sum_agrees_with_its_terms() -> None:
    inputs: dict[str, Sequence[Size] | None] = {"x": [1, "T"], "past": [1, "P", 4], "mask": [1, "P + T"]}
    nodes = [node("Relu", [name], [f"{name}_y"]) for name in inputs]
    proto = model(nodes, inputs, [f"{name}_y" for name in inputs])
    assert concretize(proto).inputs["mask"] == (1, 16)
    assert concretize(proto, {"P": 5}).inputs["mask"] == (1, 13)


def test_a_size_is_given_by_its_symbol() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N", "seq", None]}, ["y"])
    assert concretize(proto, {"seq": 48, "x[2]": 3}).inputs["x"] == (1, 48, 3)
    with pytest.raises(UsageError, match='no symbolic size "sqe"') as caught:
        concretize(proto, {"sqe": 48})
    assert (caught.value.code, caught.value.hint) == ("OP603", 'did you mean "seq"?')
    with pytest.raises(UsageError, match="sizes are positive"):
        concretize(proto, {"seq": 0})
    with pytest.raises(UsageError, match='fixed at 48 by another "seq"'):
        concretize(proto, {"seq": 48, "x": [1, 4, 3]})


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_axis_is_as_long_as_what_a_pad_reflects(mode: str, inside: bool) -> None:
    """Also in a body of If, which may or may not run; the usual length does where edges are repeated."""
    pads = {"pads": np.array([0, 40, 0, 40])}
    pad = node("Pad", ["x", "pads"], ["padded"], mode=mode)
    if inside:
        result = [helper.make_tensor_value_info("padded", TensorProto.FLOAT, None)]
        other = [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)]
        bodies = {
            "then_branch": helper.make_graph([pad], "then", [], result),
            "else_branch": helper.make_graph([node("Identity", ["x"], ["same"])], "else", [], other),
        }
        nodes = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Cast", ["sum"], ["on"], to=TensorProto.BOOL)]
        nodes.append(node("If", ["on"], ["y"], name="If_0", **bodies))
    else:
        nodes = [pad, node("Relu", ["padded"], ["y"])]
    proto = normalize(model(nodes, {"x": ["N", "samples"]}, ["y"], pads))
    assert concretize(proto).inputs["x"] == (1, 64 if mode == "reflect" else 8)
