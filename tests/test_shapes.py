"""Shapes and values against what ONNX Runtime really computes, and the choice of input sizes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune._bodies import close_bodies
from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.model import load, skeleton
from onnxprune.normalise import normalise
from onnxprune.shapes import Shapes, concretise, run_for_shapes

SHARED = Path(__file__).parents[1] / "../shared/models"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

Arrays = Mapping[str, NDArray[Any]]
Size = int | str | None


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[Size] | None],
    outputs: Iterable[str],
    constants: Arrays | None = None,
    *,
    integer: Iterable[str] = (),
    opset: int = 17,
) -> ModelProto:
    kinds = {name: TensorProto.INT64 if name in integer else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    domains = sorted({node.domain for node in nodes} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


node = helper.make_node


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def really(proto: ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Run a model with every tensor of its main graph as an output."""
    full = ModelProto()
    full.CopyFrom(close_bodies(proto))
    del full.graph.value_info[:], full.graph.output[:]
    names = [name for n in full.graph.node for name in n.output if name]
    full.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(full.SerializeToString(), options)
    rng = np.random.default_rng(1)
    feeds = {}
    for entry in proto.graph.input:
        if entry.name in inputs:
            dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            feeds[entry.name] = rng.integers(0, 2, inputs[entry.name]).astype(dtype)
    return dict(zip(names, session.run(names, feeds), strict=True))


def wrong(found: Shapes, truth: Mapping[str, Any]) -> list[str]:
    """List the tensors of which something is said that isn't so."""
    bad = []
    for name, array in truth.items():
        if not isinstance(array, np.ndarray):
            continue
        right = found.shapes.get(name, array.shape) == array.shape
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        right &= found.types.get(name, element) == element
        if right and name in found.values:
            value = found.values[name]
            right = value.dtype == array.dtype and value.shape == array.shape
            tolerance = (1e-5, 1e-6) if np.issubdtype(array.dtype, np.inexact) else (0, 0)  # whole numbers are exact
            right = right and np.allclose(value, array, *tolerance, equal_nan=True)
        if not right:
            bad.append(name)
    return bad


def check(proto: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Concretise, and compare everything with what ONNX Runtime computes."""
    before = skeleton(proto).SerializeToString(deterministic=True)
    found = concretise(proto, shapes)
    assert skeleton(proto).SerializeToString(deterministic=True) == before
    truth = really(proto, found.inputs)
    assert not wrong(found, truth)
    assert found.static <= set(found.values) <= set(found.shapes) <= set(found.types)
    if truth:  # negative control: the comparison sees one wrong size and one wrong value
        name = next(n for n in truth if n in found.shapes)
        found.shapes[name], right = (*found.shapes[name], 3), found.shapes[name]
        assert wrong(found, truth) == [name]
        found.shapes[name] = right
    for name in sorted(set(found.values).intersection(truth)):
        if found.values[name].dtype == np.int64 and found.values[name].size:
            found.values[name], kept = found.values[name] + 1, found.values[name]
            assert wrong(found, truth) == [name]
            found.values[name] = kept
            break
    return found


def flatten_by_shape(x: str = "x", y: str = "y") -> list[NodeProto]:
    """Write `x.view(x.size(0), -1)` as the TorchScript exporter does."""
    return [
        node("Shape", [x], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", [x, "target"], [y]),
    ]


FLATTEN = {"zero": np.array(0), "axes": i64(0), "minus": i64(-1)}


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
    """The padding of CIFAR ResNets from the TorchScript exporter, before it is normalised."""
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
    found = concretise(proto)
    assert found.shapes["a"] == found.shapes["y"] == (1, 3)


def test_random_nodes_have_a_shape_but_no_value() -> None:
    nodes = [
        node("RandomNormal", [], ["noise"], shape=[2, 3], seed=1.0),
        node("Add", ["noise", "noise"], ["y"]),
    ]
    found = concretise(model(nodes, {}, ["y"]))
    assert found.shapes["y"] == (2, 3)
    assert not found.values
    assert not found.static


def test_values_of_large_tensors_are_not_computed() -> None:
    nodes = [
        node("ConstantOfShape", ["huge"], ["a"]),
        node("Add", ["a", "a"], ["b"]),
        node("ReduceSum", ["b"], ["c"]),
    ]
    found = concretise(model(nodes, {}, ["c"], {"huge": i64(1 << 20, 1 << 20)}))
    assert found.shapes["b"] == (1 << 20, 1 << 20)
    assert set(found.values) == {"huge"}


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
    monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: {})
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
    proto = normalise(model(nodes, {"x": [3, 2]}, ["y"], weights))
    found = check(proto)
    assert found.shapes["y"] == sizes
    assert tuple(found.values["target"]) == sizes


def test_an_operator_of_onnx_runtime_is_inferred_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: {})
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
    found = concretise(proto)
    assert found.shapes["where"] == found.shapes["y"][::-1]
    assert found.shapes["where"][0] == 2
    assert "where" not in found.values
    seen = run_for_shapes(proto, {"x": (4, 5)}, ["a", "y"])
    assert [d.dim_value for d in seen["a"].tensor_type.shape.dim] == [4, 5]


def test_nothing_is_learnt_from_an_empty_result() -> None:
    nodes = [node("Sub", ["x", "x"], ["zeros"]), node("NonZero", ["zeros"], ["y"])]
    found = concretise(model(nodes, {"x": [4, 5]}, ["y"]))
    assert "zeros" in found.shapes
    assert "y" not in found.shapes


def test_an_operator_that_nobody_knows_is_left_out() -> None:
    nodes = [node("Mystery", ["x"], ["a"], domain="my.own"), node("Relu", ["a"], ["y"])]
    proto = model(nodes, {"x": ["N", 4]}, ["y"])
    found = concretise(proto)
    assert set(found.shapes) == {"x"}
    declared = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 8])
    proto.graph.value_info.append(declared)
    assert concretise(proto, {"x": [2, 4]}).shapes["y"] == (2, 8)
    proto.graph.value_info[0].CopyFrom(helper.make_tensor_value_info("a", TensorProto.FLOAT, []))
    assert set(concretise(proto).shapes) == {"x"}


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
        monkeypatch.setattr("onnxprune.shapes.result.run_for_shapes", lambda *_: {})
        monkeypatch.setattr("onnxprune.shapes.result.runtime_types", lambda *_: {})
    reads = ["x", "s", "s"] if operator == "GroupNormalization" else ["x"]
    nodes = [node(operator, reads, ["a"], **attributes), node("Relu", ["a"], ["y"])]
    constants = {"s": np.ones(4, np.float32)} if "s" in reads else {}
    proto = model(nodes, {"x": ["N", 4, 5, 5]}, ["y"], constants, opset=opset)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    size = 3 if operator == "Crop" else 5
    shapes = concretise(proto).shapes
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
    found = concretise(model(nodes, {"x": ["N", 3, 4]}, ["y"], constants))
    assert "y" in found.shapes
    assert "" not in {*found.shapes, *found.types, *found.values, *found.static}


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
    assert "y" not in concretise(proto).shapes
    assert time.perf_counter() - start < 10


# Input sizes


def conv(*, channels: int = 3) -> Arrays:
    return {"w": np.zeros((8, channels, 3, 3), np.float32)}


def test_images_get_a_usual_size_and_symbols_agree() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Add", ["a", "mask"], ["y"])]
    proto = model(nodes, {"x": ["N", 3, "H", "W"], "mask": ["N", 8, None, None]}, ["y"], conv())
    found = concretise(proto)
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
    assert concretise(proto).inputs["x"] == (1, 3, 224, 224)


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


def test_initialisers_are_no_inputs() -> None:
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, 8, 8]}, ["y"], conv())
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, ["any", "thing", 3, 3])
    proto.graph.input.append(weight)
    found = check(proto)
    assert set(found.inputs) == {"x"}
    assert found.shapes["w"] == (8, 3, 3, 3)


# Errors


RELU = model([node("Relu", ["image"], ["y"])], {"image": ["N", 3, "H", "H"]}, ["y"])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"imgae": [1, 3, 8, 8]}, 'did you mean "image"?'),
        ({"other": [1, 3, 8, 8]}, "inputs: image"),
        ({"image": [1, 3, 8]}, "3 sizes for 4 axes"),
        ({"image": [1, 4, 8, 8]}, "axis 1 is fixed at 3 by the model, not 4"),
        ({"image": [1, 3, 8, 9]}, 'axis 3 is fixed at 8 by "H" in another place, not 9'),
        ({"image": [0, 3, 8, 8]}, "sizes are positive"),
        ({"image": [1, 3, 8, -1]}, "sizes are positive"),
        ({"image": [1, 3, 8, 8.5]}, "sizes are whole numbers"),
    ],
)
def test_input_shapes_that_do_not_fit(shapes: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        concretise(RELU, shapes)
    assert caught.value.code == "OP603"
    assert words in str(caught.value)


def test_numpy_sizes_are_sizes() -> None:
    found = concretise(RELU, {"image": np.array([2, 3, 8, 8])})  # type: ignore[dict-item]
    assert found.inputs["image"] == (2, 3, 8, 8)


def test_an_input_without_rank_needs_a_shape() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    with pytest.raises(ModelError, match="--input-shape x:1,3,224,224") as caught:
        concretise(proto)
    assert caught.value.code == "OP124"
    assert concretise(proto, {"x": [2, 3]}).shapes["y"] == (2, 3)


def test_an_input_without_type_is_no_crash() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert set(concretise(proto).shapes) <= {"x", "y"}


def test_a_scalar_input_has_a_shape() -> None:
    assert check(model([node("Relu", ["x"], ["y"])], {"x": []}, ["y"])).inputs == {"x": ()}


def test_an_input_of_size_zero_is_refused() -> None:
    with pytest.raises(ModelError, match="size zero") as caught:
        concretise(model([node("Relu", ["x"], ["y"])], {"x": ["N", 0, 4]}, ["y"]))
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
        concretise(proto, given)
    assert caught.value.code == "OP125"
    assert 'Gemm "classifier"' in str(caught.value)
    assert "--input-shape x:" in str(caught.value)
    assert check(proto, {"x": [1, 3, 37, 37]}).shapes["y"] == (1, 2)


def test_a_given_size_that_onnx_refuses() -> None:
    proto = model([node("Add", ["x", "b"], ["y"])], {"x": ["N", "C"], "b": [1, 5]}, ["y"])
    with pytest.raises(ModelError) as caught:
        concretise(proto, {"x": [1, 4]})
    assert caught.value.code == "OP125"
    assert "Incompatible dimensions" in str(caught.value)


def test_a_model_that_contradicts_itself_is_for_onnx_runtime_to_judge() -> None:
    proto = model([node("Add", ["x", "b"], ["y"])], {"x": [3, 4], "b": [3, 5]}, ["y"])
    assert "y" not in concretise(proto).shapes


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
        concretise(proto)


# Speed


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
        found = concretise(proto)
        times.append(time.process_time() - start)
    assert all(name in found.shapes for n in proto.graph.node for name in n.output)
    return min(times)


@pytest.mark.slow
def test_ten_thousand_nodes_take_a_second_at_most_and_time_is_linear() -> None:
    small, large = seconds(synthetic(100)), seconds(synthetic(1000))
    assert large < 1.0
    assert large < 20 * small


# Real models

# Recurrent models whose If takes sizes that nothing outside of it tells
GIVEN = {
    "silero_vad": {"input": [1, 256], "state": [2, 1, 128]},
    "silero_vad_op18_ifless": {"input": [1, 512]},
}
SLOW = {
    *("convnext_tiny_ts", "fns_candy", "resnet50_dynamo", "resnext50_dynamo", "vit_small_dynamo", "vit_small_ts"),
    *("yunet_n_640", "light_bvlc_alexnet", "light_densenet121", "light_resnet50", "light_vgg19", "light_zfnet512"),
}
FILES = sorted([*SHARED.glob("**/*.onnx"), *LIGHT.glob("*.onnx")])


def test_the_shared_models_are_there() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/models is absent: only the onnx package's own models are compared")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in FILES],
)
def test_real_models(path: Path) -> None:
    proto = normalise(load(path).proto)
    found = check(proto, GIVEN.get(path.stem))
    reads = {name for n in proto.graph.node for name in n.input}
    reads.update(output.name for output in proto.graph.output)
    made = {name for n in proto.graph.node for name in n.output}
    assert reads & made - {""} <= set(found.shapes)


def test_a_model_as_it_was_exported() -> None:
    path = SHARED / "cifar_resnet20_ts.onnx"
    if not path.exists():
        pytest.skip("../shared/models is absent")
    proto = onnx.load(path)  # Constant and ConstantOfShape nodes and all
    found = check(proto)
    pads = [n.input[1] for n in proto.graph.node if n.op_type == "Pad"]
    assert pads
    assert set(pads) <= found.static
