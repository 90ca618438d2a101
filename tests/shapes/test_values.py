"""Values that are known beforehand, against what ONNX Runtime really computes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.shapes import concretize
from tests.shapes.support import (
    FLATTEN,
    check,
    flatten_by_shape,
    i64,
    model,
    node,
)


def test_a_reshape_to_a_computed_shape() -> None:
    found = check(model(flatten_by_shape(), {"x": ["N", 3, 4, 4]}, ["y"], FLATTEN))
    assert found.shapes["y"] == (1, 48)
    assert found.symbols == {"N": 1}
    assert found.inputs == {"x": (1, 3, 4, 4)}
    assert found.values["target"].tolist() == [1, -1]
    assert {"shape", "n", "n1", "target"}.isdisjoint(found.static)
    assert set(FLATTEN) <= found.static


def test_a_chain_on_a_chain_is_resolved_in_one_pass() -> None:
    nodes, last = [], "x"
    for i in range(40):  # each reshape's target is computed from the result of the one before
        nodes += [
            node("Shape", [last], [f"s{i}"]),
            node("Gather", [f"s{i}", "swap"], [f"t{i}"]),
            node("Reshape", [last, f"t{i}"], [f"y{i}"]),
        ]
        last = f"y{i}"
    found = check(model(nodes, {"x": ["N", 5, 7]}, [last], {"swap": i64(2, 0, 1)}))
    assert found.shapes["y0"] == (7, 1, 5)


def test_pad_amounts_by_constant_of_shape() -> None:
    """The padding of CIFAR ResNets from the TorchScript exporter, before it is normalized."""
    nodes = [
        node("Constant", [], ["amounts"], value=numpy_helper.from_array(i64(0, 0, 0, 0, 2, 2))),
        node("ConstantOfShape", ["missing"], ["zeros"], value=numpy_helper.from_array(i64(0))),
        node("Concat", ["amounts", "zeros"], ["eight"], axis=0),
        node("Reshape", ["eight", "pairs"], ["rows"]),
        node("Slice", ["rows", "last", "first", "axes", "last"], ["flipped"]),
        node("Transpose", ["flipped"], ["columns"], perm=[1, 0]),
        node("Reshape", ["columns", "flat"], ["pads"]),
        node("Pad", ["x", "pads"], ["y"]),
    ]
    constants = {
        "missing": i64(2),
        "pairs": i64(-1, 2),
        "flat": i64(-1),
        "last": i64(-1),
        "first": i64(np.iinfo(np.int64).min),
        "axes": i64(0),
    }
    found = check(model(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants))
    assert found.shapes["y"] == (1, 7, 4, 4)
    assert "pads" in found.static


def test_every_value_is_known_at_the_newer_opsets_of_shape_and_split() -> None:
    nodes = [
        node("Shape", ["x"], ["tail"], start=1, end=-1),
        node("Size", ["x"], ["size"]),
        node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        node("Mul", ["tail", "tail"], ["square"]),
        node("ConstantOfShape", ["tail"], ["zeros"]),
        node("Cast", ["size"], ["float"], to=TensorProto.FLOAT),
        node("Sqrt", ["float"], ["root"]),
    ]
    outputs = ["a", "b", "square", "zeros", "root"]
    found = check(model(nodes, {"x": ["N", 5, 6, 2]}, outputs, opset=18))
    assert found.values["tail"].tolist() == [5, 6]
    assert found.values["size"] == 60
    assert (found.shapes["a"], found.shapes["b"]) == ((1, 3, 6, 2), (1, 2, 6, 2))
    assert found.values["zeros"].shape == (5, 6)


def test_static_values_are_those_that_no_input_size_changes() -> None:
    nodes = [
        node("Shape", ["w"], ["of_weight"]),
        node("Shape", ["x"], ["of_input"]),
        node("Mul", ["of_weight", "two"], ["twice"]),
        node("Add", ["of_weight", "of_input"], ["sum"]),
        node("Transpose", ["w"], ["wt"]),
        node("Shape", ["wt"], ["of_transposed"]),
    ]
    proto = model(
        nodes,
        {"x": ["A", "B"]},
        ["twice", "sum", "of_transposed"],
        {"w": np.zeros((100, 50), np.float32), "two": i64(2)},
    )
    found, other = check(proto), check(proto, {"x": [7, 9]})
    assert found.static == {"of_weight", "twice", "two", "of_transposed"}
    assert "w" not in found.values  # 5000 elements
    changed = {n for n in found.values if not np.array_equal(found.values[n], other.values[n])}
    assert changed == set(found.values) - found.static


def test_stale_value_info_is_not_believed() -> None:
    proto = model([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {"x": ["N", 3]}, ["y"])
    stale = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 64])
    proto.graph.value_info.append(stale)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 9]))
    found = concretize(proto)
    assert found.shapes["a"] == found.shapes["y"] == (1, 3)


def test_random_nodes_have_a_shape_but_no_value() -> None:
    nodes = [
        node("RandomNormal", [], ["noise"], shape=[2, 3], seed=1.0),
        node("Add", ["noise", "noise"], ["y"]),
    ]
    found = concretize(model(nodes, {}, ["y"]))
    assert found.shapes["y"] == (2, 3)
    assert not found.values
    assert not found.static


def test_values_of_large_tensors_are_not_computed() -> None:
    nodes = [
        node("ConstantOfShape", ["huge"], ["a"]),
        node("Add", ["a", "a"], ["b"]),
        node("ReduceSum", ["b"], ["c"]),
    ]
    found = concretize(model(nodes, {}, ["c"], {"huge": i64(1 << 20, 1 << 20)}))
    assert found.shapes["b"] == (1 << 20, 1 << 20)
    assert set(found.values) == {"huge"}
