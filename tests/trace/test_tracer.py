"""Whole graphs: couplings of known architectures, reasons of pins, and edge cases."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from tests.toolbox import Net, analyze, assert_proved, removal


def prove(graph: ChannelGraph) -> None:
    """Prune at random, several times, and verify."""
    for seed in range(3):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


def sizes(graph: ChannelGraph) -> dict[str, int]:
    return {g.name: len(g.units) for g in graph.groups}


def group_of(graph: ChannelGraph, producer: str) -> Group:
    (group,) = (g for g in graph.groups if producer in g.producers)
    return group


def reasons(graph: ChannelGraph, tensor: str, axis: int) -> set[tuple[str, str]]:
    """Return the codes and nodes that pin an axis of a weight."""
    units = graph.unit_of[graph.slots[tensor, axis]]
    return {(pin.code, pin.node) for unit in units for pin in graph.pins(int(unit))}


def test_residual() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="stem")
    for i in range(3):
        y = net.op("Relu", net.conv(x, 5, 3, name=f"inner{i}"))
        x = net.op("Add", x, net.conv(y, 8, name=f"outer{i}"))
    net.output(net.conv(x, 2, name="head"))
    graph = analyze(net.model())
    assert sizes(graph) == {"stem": 8, "inner0": 5, "inner1": 5, "inner2": 5}
    assert group_of(graph, "stem").producers == ("stem", "outer0", "outer1", "outer2")
    assert all(g.exact for g in graph.groups)
    prove(graph)


def test_sizes_that_are_only_known_at_run_time_are_no_channels() -> None:
    """The size of a Resize comes from an input: the constants it is made of aren't listed as channels."""
    net = Net()
    x = net.conv(net.conv(net.input((1, 3, 6, 6)), 8, name="stem"), 2, name="head")
    size = net.op("Mul", net.input((2,), "size", dtype=TensorProto.INT64), net.const(np.array([2, 2])))
    target = net.op("Concat", net.const(np.array([1, 2])), size, axis=0, name="target")
    net.output(net.ops("Resize", x, "", "", target, count=1, shapes=[(1, 2, 4, 4)])[0], {2: None, 3: None})
    assert sizes(analyze(net.model())) == {"stem": 8}


def test_a_slice_that_picks_nothing() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="stem")
    x = net.op("Concat", net.slice(x, [5], [5], [1]), x, axis=1)
    net.output(net.conv(x, 2, name="head"))
    graph = analyze(net.model())
    assert sizes(graph) == {"stem": 8}
    prove(graph)


@pytest.mark.parametrize("times", [2**32, 4])
@pytest.mark.parametrize("operator", ["Expand", "Tile", "Pad"])
def test_an_impossible_axis_gives_a_node_up(operator: str, times: int) -> None:
    """A damaged size allocates no memory: the node's inputs are pinned, and the trace goes on."""
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="stem")
    amounts, shape = {
        "Expand": ([times, 1, 1, 1], (times, 8, 6, 6)),
        "Tile": ([1, times, 1, 1], (1, 8 * times, 6, 6)),
        "Pad": ([0, 0, 0, 0, 0, times, 0, 0], (1, 8 + times, 6, 6)),
    }[operator]
    x = net.ops(operator, x, net.const(np.array(amounts)), count=1, name="wide", shapes=[shape])[0]
    net.output(net.op("ReduceMean", x, axes=[2, 3]), {1: None})
    graph = analyze(net.model(check=False))
    given_up = {pin.node for _, pin in graph.reasons() if "too many to trace" in pin.reason}
    assert given_up == ({f'{operator} "wide"'} if times > 4 else set())


def test_a_grid_of_some_positions_of_a_long_axis() -> None:
    """A ScatterND writes three rows of two billion."""
    net = Net()
    x = net.linear(net.input((2**31 - 2, 3)), 8, name="make")
    y = net.linear(net.input((3, 3)), 8, name="other")
    x = net.ops("ScatterND", x, net.const(np.array([[4], [7], [9]])), y, count=1, shapes=[(2**31 - 2, 8)])[0]
    net.output(net.linear(x, 2, name="head"))
    assert sizes(analyze(net.model(check=False))) == {"make": 8}


def test_option_a_shortcut() -> None:
    """Padding adds channels: those of the wide stage come from two sources."""
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 4, name="stem")
    y = net.conv(net.op("Relu", x), 8, 3, strides=[2, 2], name="wide")
    short = net.slice(x, [0, 0], [8, 8], [2, 3], [2, 2])
    x = net.op("Add", y, net.pad(short, [0, 2, 0, 0, 0, 2, 0, 0]))
    net.output(net.conv(x, 2, name="head"))
    graph = analyze(net.model())
    assert sorted((g.name, len(g.units)) for g in graph.groups) == [("stem", 4), ("wide", 4)]
    assert {s for s, _ in group_of(graph, "stem").slots} == {"stem_w", "stem_b", "wide_w", "wide_b", "head_w"}
    prove(graph)


def test_c2f() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="in")
    a, b = net.split(x, [4, 4], 1)
    c = net.op("Add", b, net.conv(net.op("Relu", net.conv(b, 3, name="mid")), 4, name="back"))
    net.output(net.conv(net.op("Concat", a, b, c, axis=1), 2, name="out"))
    graph = analyze(net.model())
    assert sorted(len(g.units) for g in graph.groups) == [3, 4, 4]
    assert {len(g.units): g.width for g in graph.groups} == {3: 1, 4: 2}  # b and c have two positions in the concat
    prove(graph)


def test_squeeze_and_excitation() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="in")
    y = net.conv(net.op("GlobalAveragePool", x), 3, name="reduce")
    y = net.op("Sigmoid", net.conv(net.op("Relu", y), 8, name="expand"))
    net.output(net.conv(net.op("Mul", x, y), 2, name="out"))
    graph = analyze(net.model())
    assert sizes(graph) == {"in": 8, "reduce": 3}
    assert group_of(graph, "expand").name == "in"
    prove(graph)


def test_channel_shuffle() -> None:
    """ShuffleNet interleaves both halves; each group of the convolution before loses the same number of channels."""
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="in")
    x = net.conv(x, 8, group=2, name="grouped")
    x = net.reshape(net.op("Transpose", net.reshape(x, [1, 2, 4, 6, 6]), perm=[0, 2, 1, 3, 4]), [1, 8, 6, 6])
    net.output(net.conv(x, 2, name="out"))
    graph = analyze(net.model())
    assert {g.name: g.sets.shape for g in graph.groups} == {"in": (4, 2), "grouped": (4, 2)}
    places = graph.unit(int(group_of(graph, "grouped").units[1])).slices
    assert {s.tensor: s.positions.tolist() for s in places if s.tensor in ("grouped_w", "out_w")} == {
        "grouped_w": [1],
        "out_w": [2],
    }
    prove(graph)


def test_flatten() -> None:
    net = Net()
    x = net.op("Flatten", net.conv(net.input((2, 3, 3, 3)), 5, name="conv"))
    net.output(net.linear(x, 4, name="fc"))
    graph = analyze(net.model())
    (group,) = graph.groups
    assert group.width == 9
    unit = graph.unit(int(group.units[2]))
    assert {s.tensor: s.positions.tolist() for s in unit.slices} == {
        "conv_w": [2],
        "conv_b": [2],
        "fc_w": list(range(18, 27)),
    }
    prove(graph)


def test_tied_embeddings() -> None:
    """For an embedding that is also, transposed, the output layer: rows are positions, columns may leave."""
    net = Net()
    tokens = net.input((2, 5), "tokens", TensorProto.INT64)
    table = net.weight(7, 6, name="table")
    x = net.op("Gather", table, tokens, axis=0)
    x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 9, name="up")), 6, name="down"))
    net.output(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]), name="predict"))
    graph = analyze(net.model())
    assert sorted(len(g.units) for g in graph.groups) == [6, 9]
    assert ("table", 1) in next(g for g in graph.groups if len(g.units) == 6).slots
    assert {code for code, _ in reasons(graph, "table", 0)} >= {"OP205"}
    prove(graph)


def test_shared_layer_on_two_paths() -> None:
    """A detector's head on two scales: what feeds it is coupled through its weight."""
    net = Net()
    w = net.weight(5, 4, 1, 1, name="shared", fan_in=4)
    for name in "ab":
        x = net.conv(net.input((1, 3, 6, 6), name), 4, name=f"stem {name}")
        net.output(net.conv(net.op("Conv", x, w), 2, name=f"head {name}"))
    graph = analyze(net.model())
    assert sorted((len(g.units), len(g.nodes)) for g in graph.groups) == [(4, 4), (5, 4)]
    prove(graph)


def test_equal_vectors_couple_nothing() -> None:
    """TorchScript stores equal biases once; two layers that share nothing else stay apart."""
    net = Net()
    bias = net.weight(4, name="bias")
    for name in "ab":
        x = net.input((1, 3, 6, 6), name)
        x = net.op("Conv", x, net.weight(4, 3, 1, 1), bias, name=f"stem {name}")
        net.output(net.conv(x, 2))
    graph = analyze(net.model())
    assert sizes(graph) == {"stem a": 4, "stem b": 4}
    prove(graph)


def test_a_weight_that_is_an_output_stays() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 4, name="stem")
    net.output(net.conv(x, 2))
    net.output("stem_w")
    graph = analyze(net.model())
    assert not graph.groups
    assert ("OP202", 'graph output "stem_w"') in reasons(graph, "stem_w", 0)


@pytest.mark.parametrize("opset", [15, 21])
def test_training_statistics_as_outputs(opset: int) -> None:
    """A second output of BatchNormalization has one entry per channel, and is a model output."""
    net = Net(opset)
    x = net.conv(net.input((4, 3, 6, 6)), 5, name="stem")
    moments = [net.between(0.5, 1.5, 5) for _ in range(4)]
    x, mean, _ = net.ops("BatchNormalization", x, *moments, count=3, training_mode=1)
    net.output(net.conv(x, 2))
    net.output(mean)
    graph = analyze(net.model())
    assert not graph.groups


def test_what_a_body_captures_leaves_with_what_it_gives() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 4, name="captured")
    w = net.weight(1, 4, 1, 1, name="inside")
    y = net.conv(net.op("Relu", net.conv(x, 5, name="free")), 4, name="meets")
    kind = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    bodies = {
        f"{branch}_branch": helper.make_graph([helper.make_node("Mul", [x, w], ["inner"])], branch, [], [kind])
        for branch in ("then", "else")
    }
    condition = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0))
    (z,) = net.ops("If", condition, count=1, shapes=[[1, 4, 6, 6]], name="branch", **bodies)
    net.types[z].tensor_type.elem_type = TensorProto.FLOAT
    net.output(net.conv(net.op("Add", y, z), 2))
    graph = analyze(net.model())
    assert sizes(graph) == {"free": 5, "captured": 4}
    assert (graph.unit_of[graph.slots["captured_w", 0]] == graph.unit_of[graph.slots["inside", 1]]).all()
    prove(graph)


def test_model_local_functions_are_seen_through() -> None:
    net = Net(domains={"local": 1})
    x = net.conv(net.input((1, 3, 6, 6)), 4, name="stem")
    (y,) = net.ops("local:Block", x, count=1, shapes=[[1, 4, 6, 6]])
    net.output(net.conv(y, 2))
    model = net.model(check=False)
    body = [helper.make_node("Sigmoid", ["a"], ["b"]), helper.make_node("Mul", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("local", "Block", ["a"], ["c"], body, [helper.make_opsetid("", 17)]))
    graph = analyze(model)
    assert sizes(graph) == {"stem": 4}
    prove(graph)


def test_sparse_weights_stay() -> None:
    net = Net()
    x = net.linear(net.op("Relu", net.linear(net.input((2, 3)), 4, name="first")), 5, name="second")
    net.output(net.linear(x, 2, name="third"))
    model = net.model()
    values = helper.make_tensor("second_w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [3], [0, 7, 18])
    kept = [t for t in model.graph.initializer if t.name != "second_w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 5]))
    graph = analyze(model)
    prove(graph)


def test_an_input_that_has_a_default() -> None:
    """An initializer that is also an input is a weight."""
    net = Net()
    net.output(net.conv(net.conv(net.input((1, 3, 6, 6)), 4, name="stem"), 2, name="head"))
    model = net.model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    graph = analyze(model)
    assert sizes(graph) == {"stem": 4}
    prove(graph)


def test_pins_tell_where_and_why() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6), "image"), 4, name="stem")
    net.output(net.op("Identity", x, name="bare"))
    y = net.conv(net.op("Relu", net.conv(x, 6, name="mid")), 5, name="last")
    net.output(net.op("Softmax", y, axis=1, name="classes"))
    graph = analyze(net.model())
    assert reasons(graph, "stem_w", 1) == {("OP201", 'Conv "stem"')}
    assert reasons(graph, "stem_w", 0) == {("OP202", 'graph output "bare_out0"')}
    assert ("OP204", 'Softmax "classes"') in reasons(graph, "last_w", 0)
    assert sizes(graph) == {"mid": 6}
    assert reasons(graph, "mid_w", 0) == set()


def test_two_sets_of_channels_merged_into_one_axis() -> None:
    """Of two axes merged into one, only one set of channels can be followed; the other stays."""
    net = Net()
    x = net.input((2, 3))
    rows, columns = net.linear(x, 6, name="rows"), net.linear(x, 4, name="columns")
    product = net.op("Mul", net.unsqueeze(rows, [2]), net.unsqueeze(columns, [1]))
    net.output(net.linear(net.op("Reshape", product, net.const(np.array([2, 24])), name="merge"), 2))
    graph = analyze(net.model())
    assert sizes(graph) == {"rows": 6}
    assert reasons(graph, "columns_w", 1) == {("OP208", 'Reshape "merge"')}
    assert not reasons(graph, "rows_w", 1)
    prove(graph)


def test_the_path_of_a_coupling() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 4, name="stem")
    y = net.conv(net.op("Relu", net.conv(x, 6, name="inner")), 4, name="outer")
    z = net.op("Add", x, y, name="sum")
    net.output(net.conv(net.op("BatchNormalization", z, *[net.between(1, 2, 4) for _ in range(4)], name="norm"), 2))
    graph = analyze(net.model())
    start, goal = graph.slots["stem_w", 0], graph.slots["outer_w", 0]
    assert graph.path(start, goal) == ["sum"]
    scale = next(n.input[1] for n in graph.proto.graph.node if n.name == "norm")
    assert graph.path(goal, graph.slots[scale, 0]) == ["sum", "norm"]
    assert graph.path(start, graph.slots["inner_w", 0]) == []


def test_units_and_groups_agree() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8, name="in")
    x = net.conv(x, 8, group=2, name="grouped")
    net.output(net.conv(x, 2, name="out"))
    graph = analyze(net.model())
    for group in graph.groups:
        for unit in group.units:
            assert not graph.pinned[unit]
            assert graph.pins(int(unit)) == []
            slices = graph.unit(int(unit)).slices
            assert {(s.tensor, s.axis) for s in slices} == set(group.slots)
            assert max(len(s.positions) for s in slices) == group.width
    seen = np.concatenate([g.units for g in graph.groups])
    assert len(seen) == len(set(seen.tolist()))


def test_a_deep_chain_is_traced() -> None:
    """Ten thousand nodes, without recursion and in linear time."""
    net = Net()
    x = net.conv(net.input((1, 3, 2, 2)), 4, name="stem")
    nodes = [helper.make_node("Relu", [x if i == 0 else f"r{i - 1}"], [f"r{i}"], name=f"n{i}") for i in range(10_000)]
    net.nodes += nodes
    net.types["r9999"] = net.types[x]
    net.output(net.conv("r9999", 2, name="head"))
    graph = analyze(net.model(check=False))
    assert sizes(graph) == {"stem": 4}


@pytest.mark.parametrize("attention", ["heads", "width"])
def test_attention(attention: str) -> None:
    """Whole heads leave, or a part of each head's width: of queries and keys, or of values and the projection."""
    net = Net()
    x = net.input((2, 5, 6))

    def heads(name: str) -> str:
        y = net.reshape(net.linear(x, 12, name=name), [2, 5, 3, 4])
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    q, k, v = map(heads, ("query", "key", "value"))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=3)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    net.output(net.linear(net.reshape(y, [2, 5, 12]), 6, name="project"))
    graph = analyze(net.model(), attention=attention)  # type: ignore[arg-type]
    found = {g.producers: (len(g.units), g.width) for g in graph.groups}
    if attention == "heads":
        assert found == {("query", "key", "value"): (3, 4)}
    else:
        assert found == {("query", "key"): (4, 3), ("value",): (4, 3)}
    prove(graph)


def test_constants_only() -> None:
    """A graph without weights, and one without nodes that read its input."""
    net = Net()
    net.output(net.op("Relu", net.input((1, 3))))
    assert not analyze(net.model()).groups
    net = Net()
    net.input((1, 3))
    net.output(net.op("Relu", net.weight(4, 5)))
    assert not analyze(net.model()).groups


def test_ir_version_3() -> None:
    net = Net(8)
    net.output(net.conv(net.conv(net.input((1, 3, 6, 6)), 4, name="stem"), 2))
    model = net.model()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    onnx.checker.check_model(model, full_check=True)
    graph = analyze(model)
    assert sizes(graph) == {"stem": 4}
    prove(graph)


def test_axes_without_channels_may_have_any_size() -> None:
    """A slice, pieces and tiles of two billion positions cost nothing."""
    net = Net()
    x = net.linear(net.input((1, 2**31 - 2, 3)), 8, name="make")
    first, _ = net.split(net.slice(x, [1], [2**31 - 3], [1]), [2**31 - 5, 1], 1)
    tiled = net.op("Tile", first, net.const(np.array([1, 1, 1])))
    net.output(net.linear(tiled, 2, name="head"))
    assert sizes(analyze(net.model(check=False))) == {"make": 8}
