"""Parts of models, and runs along a cut: always the tensors that the whole model computes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxprune.model.graph import extract
from onnxprune.model.stream import Stream
from onnxprune.model.tensors import set_tensor
from tests.toolbox import Net, run_once

Array = NDArray[Any]


def network() -> ModelProto:
    """Build a residual block with a branch that starts early and ends late, and two inputs."""
    net = Net()
    x = net.input((2, 3, 4, 4), "x", symbols={0: "N"})
    gate = net.input((2, 4, 1, 1), "gate", symbols={0: "N"})
    a = net.conv(x, 4, name="a")
    b = net.conv(net.op("Relu", a, name="ra"), 4, 3, name="b")
    c = net.op("Add", a, b, name="c")
    d = net.conv(net.op("Relu", c, name="rc"), 4, name="d")
    net.output(net.op("Mul", net.op("Add", d, a, name="e"), gate, name="f"))
    net.output(b)
    return net.model(check=False)


def inputs(count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((2 + i % 2, 3, 4, 4)).astype(np.float32),
            "gate": rng.standard_normal((2 + i % 2, 4, 1, 1)).astype(np.float32),
        }
        for i in range(count)
    ]


def truth(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model with every tensor as an output."""
    full = ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.extend(ValueInfoProto(name=o) for n in model.graph.node for o in n.output if o)
    return {**feeds, **run_once(full, feeds)}


def names(model: ModelProto) -> list[str]:
    return [o for n in model.graph.node for o in n.output if o]


def check(stream: Stream, batches: list[dict[str, Array]], wanted: list[str]) -> None:
    found = list(stream.tensors(wanted))
    assert len(found) == len(batches)
    for arrays, batch in zip(found, batches, strict=True):
        expected = truth(stream.model, batch)
        assert set(arrays) == set(wanted)
        for name in wanted:
            np.testing.assert_allclose(arrays[name], expected[name], atol=1e-5)


# Parts


def test_a_part_has_what_it_needs_and_no_more() -> None:
    model = network()
    part = extract(model, ["b_out0", "a_out0"])
    assert [n.name for n in part.graph.node] == ["a", "ra", "b"]
    assert {t.name for t in part.graph.initializer} == {"a_w", "a_b", "b_w", "b_b"}
    assert [i.name for i in part.graph.input] == ["x"]
    assert [o.name for o in part.graph.output] == ["b_out0", "a_out0"]
    (feeds,) = inputs(1)
    found, expected = run_once(part, {"x": feeds["x"]}), truth(model, feeds)
    assert list(found) == ["b_out0", "a_out0"]
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_part_starts_at_what_is_given() -> None:
    model, (feeds,) = network(), inputs(1)
    expected = truth(model, feeds)
    given = {name: expected[name] for name in ("c_out0", "a_out0", "gate")}
    part = extract(model, ["f_out0"], given)
    assert [n.name for n in part.graph.node] == ["rc", "d", "e", "f"]
    assert {i.name for i in part.graph.input} == set(given)
    np.testing.assert_allclose(run_once(part, given)["f_out0"], expected["f_out0"], atol=1e-5)


def test_a_part_keeps_what_branches_capture() -> None:
    net = Net()
    x = net.conv(net.input((1, 2, 3, 3), "x"), 2, name="a")
    unused = net.conv("x", 2, name="unused")
    made = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", [x], ["o"])], "branch", [], [made])
    branches = {"then_branch": branch, "else_branch": branch}
    y = net.ops("If", net.const(np.array(True)), count=1, name="if", shapes=[(1, 2, 3, 3)], **branches)[0]
    net.types[y].CopyFrom(net.types[x])
    net.output(y)
    net.output(unused)
    model = net.model(check=False)
    part = extract(model, [y])
    assert [n.name for n in part.graph.node] == ["a", "if"]
    feeds = {"x": np.ones((1, 2, 3, 3), np.float32)}
    np.testing.assert_array_equal(run_once(part, feeds)[y], run_once(model, feeds)[y])


def test_a_model_is_not_changed() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    extract(model, ["b_out0"])
    stream = Stream(model, lambda: inputs(2))
    stream.advance(3)
    list(stream.tensors(["d_out0"]))
    assert model.SerializeToString(deterministic=True) == before


# Streams


@pytest.mark.parametrize("budget", [1 << 30, 2500, 0])
def test_tensors_are_those_of_the_whole_model(budget: int) -> None:
    """Wherever the cut is, everything behind it can be asked for; 2500 bytes hold some cuts and not others."""
    model, batches = network(), inputs(3)
    stream = Stream(model, lambda: batches, budget=budget)
    check(stream, batches, ["x", *names(model)])
    for position in range(len(model.graph.node)):
        stream.advance(position)
        check(stream, batches, [o for n in model.graph.node[position:] for o in n.output])
        check(stream, batches, [n for n in model.graph.node[position].input if n in names(model)])


def test_a_cut_can_move_several_nodes_at_once() -> None:
    model, batches = network(), inputs(3)
    stream = Stream(model, lambda: batches)
    stream.advance(2)
    stream.advance(5)
    stream.advance(5)
    check(stream, batches, ["d_out0", "f_out0", "c_out0"])


def test_behind_a_cut_inputs_are_not_read_again() -> None:
    """They are, each time, where nothing may be held."""
    model, batches = network(), inputs(3)
    for budget, reads in ((1 << 30, 1), (0, 5)):
        asked: list[int] = []
        stream = Stream(model, functools.partial(_counted, batches, asked), budget=budget)
        stream.advance(2)
        stream.advance(4)
        for _ in range(3):
            check(stream, batches, ["f_out0"])
        assert len(asked) == reads


def _counted(batches: list[dict[str, Array]], asked: list[int]) -> Iterator[dict[str, Array]]:
    asked.append(1)
    return iter(batches)


def test_weights_behind_the_cut_may_change() -> None:
    model, batches = network(), inputs(2)
    stream = Stream(model, lambda: batches)
    stream.advance([n.name for n in model.graph.node].index("d"))
    before = [a["f_out0"] for a in stream.tensors(["f_out0"])]
    (weight,) = (t for t in model.graph.initializer if t.name == "d_w")
    set_tensor(weight, np.ones((4, 4, 1, 1), np.float32))
    check(stream, batches, ["f_out0"])
    assert not np.allclose(before[0], next(stream.tensors(["f_out0"]))["f_out0"], atol=0.1)


def test_sequences_of_tensors_are_no_obstacle() -> None:
    make, shape = helper.make_node, (4, 3)
    nodes = [
        make("Relu", ["x"], ["a"]),
        make("SplitToSequence", ["a"], ["pieces"], axis=0),
        make("ConcatFromSequence", ["pieces"], ["b"], axis=0),
        make("Neg", ["b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph(nodes, "sequence", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    batches = [{"x": np.random.default_rng(i).standard_normal((4, 3)).astype(np.float32)} for i in range(2)]
    stream = Stream(model, lambda: batches)
    for position in range(4):
        stream.advance(position)
        for arrays, batch in zip(stream.tensors(["y"]), batches, strict=True):
            np.testing.assert_array_equal(arrays["y"], -np.maximum(batch["x"], 0))
