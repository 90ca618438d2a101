"""The rewriter: what it changes, what it leaves as it was, and what it can't do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import RewriteError, VerificationError
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph, masks
from tests.toolbox import Net, analyze, assert_proved, inputs_of, removal, run_once


def half(graph: ChannelGraph, seed: int = 0) -> PrunedGraph:
    """Remove half of every group."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(graph.pinned), dtype=bool)
    for group in graph.groups:
        dealt = group.deal(rng.random(len(group.units)))
        removed[group.units[dealt[: len(dealt) // 2]]] = True
    return PrunedGraph(graph, removed)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = (n for n in model.graph.node if n.name == name)
    return found


def value(model: onnx.ModelProto, name: str) -> list[object]:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    return list(numpy_helper.to_array(tensor).ravel().tolist())


def test_what_goes_in_comes_out() -> None:
    net = Net(opset=18)
    x = net.input((2, 3, 8, 8), "image", symbols={0: "batch", 2: "height", 3: "width"})
    x = net.conv(net.op("Relu", net.conv(x, 8, 3, name="first")), 4, name="second")
    net.output(x, symbols={0: "batch", 2: "height", 3: "width"})
    model = net.model()
    model.producer_name, model.model_version, model.doc_string, model.domain = "me", 7, "what it is", "org.example"
    model.graph.doc_string, model.graph.name = "the graph", "a name"
    model.graph.node[0].doc_string = "the first"
    model.metadata_props.add(key="author", value="somebody")
    model.opset_import.add(domain="com.example", version=3)
    graph = analyze(model, {"image": (1, 3, 8, 8)})
    pruned = assert_proved(half(graph))
    assert pruned.ir_version == model.ir_version
    for field in ("producer_name", "model_version", "doc_string", "domain", "metadata_props", "opset_import"):
        assert str(getattr(pruned, field)) == str(getattr(model, field)), field
    for field in ("doc_string", "name", "input", "output"):
        assert str(getattr(pruned.graph, field)) == str(getattr(model.graph, field)), field
    assert node(pruned, "first").doc_string == "the first"
    assert [d.dim_param for d in pruned.graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    # The sizes are open: the pruned model runs at others than it was traced at.
    run_once(pruned, {"image": np.zeros((3, 3, 12, 5), np.float32)})


def test_the_source_is_untouched() -> None:
    net = Net()
    net.output(net.conv(net.conv(net.input((1, 3, 4, 4)), 8), 2))
    graph = analyze(net.model())
    before = graph.proto.SerializeToString(deterministic=True)
    rewrite(half(graph))
    assert graph.proto.SerializeToString(deterministic=True) == before


def test_nothing_removed_changes_nothing() -> None:
    net = Net()
    x = net.reshape(net.conv(net.input((1, 3, 4, 4)), 8), [1, 8, 16])
    net.output(x)
    graph = analyze(net.model())
    assert str(rewrite(PrunedGraph(graph))) == str(graph.proto)


def test_stale_shapes_are_refreshed() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 4, 4)), 8, name="wide")
    y = net.op("Relu", x)
    net.output(net.conv(y, 2))
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 8, 4, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 8, None, "W"]))
    model.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [8]))
    pruned = assert_proved(half(analyze(model)))
    assert str(pruned.graph.value_info[0]) == str(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 4, 4, 4]))
    assert str(pruned.graph.value_info[1]) == str(
        helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 4, None, "W"])
    )
    assert len(pruned.graph.value_info) == 2


def test_dead_nodes_and_unread_initializers_go() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 4, 4)), 8)
    net.op("Relu", net.conv(x, 4, name="dead"))
    net.const(np.ones(5, np.float32), "unread")
    net.output(net.conv(x, 2))
    pruned = assert_proved(half(analyze(net.model())))
    assert [n.op_type for n in pruned.graph.node] == ["Conv", "Conv"]
    assert not [t.name for t in pruned.graph.initializer if t.name.startswith(("dead", "unread"))]


def test_depthwise_groups() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8)
    x = net.conv(x, 8, 3, group=8, name="depthwise")
    net.output(net.conv(x, 2))
    pruned = assert_proved(half(analyze(net.model())))
    assert attributes(node(pruned, "depthwise"))["group"] == 4


def test_groups_that_stay() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8)
    x = net.conv(x, 16, 3, group=4, name="grouped")
    net.output(net.conv(x, 2))
    pruned = assert_proved(half(analyze(net.model())))
    assert attributes(node(pruned, "grouped"))["group"] == 4
    weight = next(t for t in pruned.graph.initializer if t.name == node(pruned, "grouped").input[1])
    assert list(weight.dims) == [8, 1, 3, 3]


@pytest.mark.parametrize(
    ("target", "expected"),
    [([2, 8, 16], [2, 4, 16]), ([0, 8, -1], [0, 4, -1]), ([2, 0, 16], [2, 0, 16]), ([-1, 8, 16], [-1, 4, 16])],
)
def test_reshape_targets(target: list[int], expected: list[int]) -> None:
    """Zeroes and minus ones stay what they are."""
    net = Net()
    x = net.conv(net.input((2, 3, 4, 4)), 8)
    x = net.reshape(x, target, name="reshape")
    net.output(net.conv(x, 2))
    pruned = assert_proved(half(analyze(net.model())))
    assert value(pruned, node(pruned, "reshape").input[1]) == expected


def test_a_shared_target_is_not_shared_any_more() -> None:
    """Two Reshapes by one initializer, of which only one changes."""
    net = Net()
    a, b = (net.input((1, 8, 4, 4), name) for name in "ab")
    target = net.const(np.array([1, 8, 16]), "target")
    x = net.op("Reshape", net.conv(a, 8), target, name="pruned")
    y = net.op("Reshape", b, target, name="kept")
    net.output(net.conv(x, 2))
    net.output(net.op("Relu", y))
    pruned = assert_proved(half(analyze(net.model())))
    assert value(pruned, node(pruned, "pruned").input[1]) == [1, 4, 16]
    assert value(pruned, node(pruned, "kept").input[1]) == [1, 8, 16]


def test_computed_targets_stay_dynamic() -> None:
    """Only the channels' entry of a target computed from Shape is overridden."""
    net = Net()
    x = net.conv(net.input((2, 3, 4, 4), "x", symbols={0: "N", 2: "H", 3: "W"}), 8)
    shape = net.op("Shape", x)
    target = net.op("Concat", net.slice(shape, [0], [2], [0]), net.const(np.array([-1])), axis=0)
    (y,) = net.ops("Reshape", x, target, count=1, shapes=[[2, 8, 16]], name="flat")
    net.output(net.conv(y, 2), symbols={0: "N", 2: "L"})
    pruned = assert_proved(half(analyze(net.model(), {"x": (2, 3, 4, 4)})))
    (result,) = run_once(pruned, {"x": np.zeros((5, 3, 6, 2), np.float32)}).values()
    assert result.shape == (5, 2, 12)


def test_a_scale_computed_from_a_size_keeps_its_value() -> None:
    """1 / sqrt(d), as attention has it, is that of the original d."""
    net = Net()
    x = net.linear(net.input((2, 5, 6)), 8, name="wide")
    size = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(np.int64(2)), axis=0), to=TensorProto.FLOAT)
    net.output(net.linear(net.op("Div", x, net.op("Sqrt", size)), 3))
    graph = analyze(net.model())
    pruned = assert_proved(half(graph))
    scale = pruned.graph.output.add()
    scale.name = next(n for n in pruned.graph.node if n.op_type == "Sqrt").output[0]
    assert run_once(pruned, inputs_of(graph))[scale.name] == np.float32(np.sqrt(8))


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_parameters_go_where_the_opset_has_them(opset: int) -> None:
    net = Net(opset)
    x = net.conv(net.input((1, 3, 4, 4)), 8)
    a, b = net.split(x, [3, 5], 1)
    x = net.op("Concat", net.op("Relu", b), a, axis=1)
    x = net.pad(net.slice(x, [1], [8], [1]), [0, 1, 0, 0, 0, 2, 0, 0])
    net.output(net.conv(x, 2))
    for seed in range(5):
        graph = analyze(net.model())
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


def test_equal_split_becomes_unequal() -> None:
    """A Split without sizes gets sizes; num_outputs, which would contradict them, goes."""
    net = Net(opset=18)
    x = net.conv(net.input((1, 3, 4, 4)), 8, name="stem")
    a, b = net.split(x, [4, 4], 1, implicit=True)
    net.output(net.conv(a, 2))
    net.output(net.conv(b, 2))
    graph = analyze(net.model())
    removed = np.zeros(len(graph.pinned), dtype=bool)
    first, second = graph.groups
    removed[first.units[:3]] = removed[second.units[:1]] = True
    pruned = assert_proved(PrunedGraph(graph, removed))
    (split,) = (n for n in pruned.graph.node if n.op_type == "Split")
    assert value(pruned, split.input[1]) == [1, 3]
    assert "num_outputs" not in attributes(split)


def test_names_of_new_tensors_are_free() -> None:
    """A model may already use the names that the rewriter would give."""
    net = Net()
    x = net.conv(net.input((1, 3, 4, 4)), 8)
    target = net.const(np.array([1, 8, 16]), "target")
    decoy = net.const(np.ones((1, 1, 1), np.float32), "target_pruned")
    x = net.op("Reshape", x, target)
    net.output(net.conv(net.op("Mul", x, decoy), 2))
    assert_proved(half(analyze(net.model())))


@pytest.mark.parametrize("opset", [8, 9])
def test_targets_computed_at_run_time(opset: int) -> None:
    """They are scaled, which needs no Where: there is none before opset 9."""
    net = Net(opset)
    x = net.conv(net.input((2, 3, 4, 4), "x"), 8)
    shape = net.op("Shape", net.conv(x, 8, name="other"))
    (y,) = net.ops("Reshape", x, shape, count=1, shapes=[[2, 8, 4, 4]])
    net.output(net.conv(y, 2))
    graph = analyze(net.model())
    pruned = assert_proved(half(graph))
    assert [n.op_type for n in pruned.graph.node].count("Mul") > 0
    assert "Where" not in {n.op_type for n in pruned.graph.node}


@pytest.mark.parametrize("opset", [8, 9])
@pytest.mark.parametrize("seed", range(3))
def test_indices_computed_from_a_size(opset: int, seed: int) -> None:
    """As many of them as remain, and not those that the size of the pruned layer would give."""
    net = Net(opset)
    image = net.input((1, 3, 4, 4), "x")
    x, y = net.conv(image, 8, name="picked"), net.conv(image, 6, name="sized")
    size = net.slice(net.op("Shape", y), [1], [2], [0])
    first = net.op("Sub", size, net.const(np.array([5])))
    index = net.op("Concat", first, net.const(np.array([0, 2, 3, 4, 5, 6, 7])), axis=0)
    net.output(net.conv(net.op("Gather", x, index, axis=1, name="pick"), 2))
    net.output(net.conv(y, 2))
    graph = analyze(net.model())
    assert [len(group.units) for group in graph.groups] == [8, 6]
    pruned = assert_proved(half(graph, seed))
    assert sorted(value(pruned, node(pruned, "pick").input[1])) == [0, 1, 2, 3]


def test_indices_of_many_elements() -> None:
    """They are adapted, too, though the walk over the shapes doesn't keep the values of so many."""
    net = Net()
    x = net.conv(net.input((1, 3, 2, 2), "x"), 40)
    index = net.const(np.random.default_rng(0).permutation(5000) % 40)
    net.output(net.conv(net.op("Gather", x, index, axis=1, name="pick"), 2))
    graph = analyze(net.model())
    pruned = assert_proved(half(graph))
    assert max(value(pruned, node(pruned, "pick").input[1])) == 19


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16], ids=["float16", "double", "bfloat16"]
)
def test_weights_keep_their_type(dtype: int) -> None:
    rng = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(dtype)

    def weight(name: str, *shape: int) -> TensorProto:
        array = (rng.standard_normal(shape) / 3).astype(kind)
        return helper.make_tensor(name, dtype, shape, array.tobytes(), raw=True)

    nodes = [
        helper.make_node("Cast", ["x"], ["x_"], name="in", to=dtype),
        helper.make_node("MatMul", ["x_", "w"], ["y"], name="wide"),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
        helper.make_node("MatMul", ["z", "v"], ["u"], name="narrow"),
        helper.make_node("Cast", ["u"], ["out"], name="out", to=TensorProto.FLOAT),
    ]
    if dtype == TensorProto.BFLOAT16:  # which ONNX Runtime's CPU provider only stores
        nodes = [
            helper.make_node("Cast", ["w"], ["w_"], name="cast w", to=TensorProto.FLOAT),
            helper.make_node("Cast", ["v"], ["v_"], name="cast v", to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "w_"], ["y"], name="wide"),
            helper.make_node("Relu", ["y"], ["z"], name="relu"),
            helper.make_node("MatMul", ["z", "v_"], ["out"], name="narrow"),
        ]
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 3])],
        [weight("w", 4, 8), weight("v", 8, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    traced = analyze(model)
    assert [len(g.units) for g in traced.groups] == [8]
    pruned = assert_proved(half(traced))
    assert {(t.name, t.data_type, tuple(t.dims)) for t in pruned.graph.initializer} == {
        ("w", dtype, (4, 4)),
        ("v", dtype, (4, 3)),
    }
    kept = np.flatnonzero(~half(traced).removed[traced.groups[0].units])
    original = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in pruned.graph.initializer:
        expected = original[tensor.name].take(kept, 1 if tensor.name == "w" else 0)
        assert numpy_helper.to_array(tensor).tobytes() == expected.tobytes()


def test_what_remains_is_a_rectangle() -> None:
    rows, columns = masks(np.array([[True, False, True], [False] * 3]))
    assert rows.tolist() == [True, False] and columns.tolist() == [True, False, True]
    with pytest.raises(RewriteError) as caught:
        masks(np.array([[True, False], [False, True]]))
    assert caught.value.code == "OP401"


@pytest.mark.parametrize("finite", [True, False])
def test_outputs_that_are_not_finite_prove_nothing(finite: bool) -> None:
    net = Net()
    x = net.conv(net.op("Relu", net.conv(net.input((1, 3, 4, 4)), 8)), 2)
    net.output(x if finite else net.op("Log", net.op("Neg", net.op("Abs", x))))
    kept = half(analyze(net.model()))
    if finite:
        assert_proved(kept)
        return
    with pytest.raises(VerificationError) as caught:
        verify(kept, rewrite(kept), inputs_of(kept.graph))
    assert caught.value.code == "OP504"
