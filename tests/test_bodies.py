"""Bodies of If: opened they are part of the graph, closed they are where they were; channels within them leave."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.model.bodies import close_bodies, in_body, is_open
from onnxprune.model.file import load
from onnxprune.normalize import normalize
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.settings.planning import Constraints, PlanSettings
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.pruning import prune
from tests.toolbox import Net, analyze, inputs_of, largest_difference, removal, run_once, swapped

Inputs = dict[str, np.ndarray]


def body(outer: Net, x: str, seed: int, deeper: bool = False, level: str = "") -> GraphProto:
    """Two convolutions of a tensor from outside; or of what a choice of its own gives, made of the first's."""
    net = Net(seed=seed)
    net.types[x] = outer.types[x]
    y = net.op("LeakyRelu", net.conv(x, 12, 3, name=f"{level}first"), name=f"{level}act")
    if deeper:
        y = chosen(net, y, seed + 1, level="deep.")
    z = net.conv(y, 4, 3, name=f"{level}second")
    result = helper.make_tensor_value_info(z, TensorProto.FLOAT, net.shape(z))
    return helper.make_graph(net.nodes, f"body{seed}", [], [result], list(net.tensors.values()))


def chosen(net: Net, x: str, seed: int, deeper: bool = False, level: str = "") -> str:
    """Add an If between two bodies, which use the same names inside."""
    result = f"chosen{seed}"
    bodies = {
        "then_branch": body(net, x, 10 * seed, deeper, level),
        "else_branch": body(net, x, 10 * seed + 5, level=level),
    }
    net.nodes.append(helper.make_node("If", ["flag"], [result], name=f"if{seed}", **bodies))
    shape = [*net.shape(x)]
    shape[1] = 4
    net.types[result] = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
    return result


def network(deeper: bool = False) -> ModelProto:
    """Layers in front, a choice, a layer behind."""
    net = Net(seed=1)
    x = net.input((1, 3, 6, 6))
    net.input((), "flag", TensorProto.BOOL)
    x = net.op("LeakyRelu", net.conv(net.op("LeakyRelu", net.conv(x, 6, 3, name="before")), 8, 3, name="last"))
    net.output(net.conv(chosen(net, x, 3, deeper), 2, name="behind"))
    return net.model()


def both(graph: ChannelGraph) -> list[Inputs]:
    """Inputs that take one branch, and inputs that take the other."""
    return [inputs_of(graph) | {"flag": np.array(flag)} for flag in (True, False)]


MODELS = pytest.mark.parametrize("deeper", [False, True], ids=["plain", "nested"])


@MODELS
def test_opened_and_closed_compute_the_same(deeper: bool) -> None:
    model = network(deeper)
    opened = normalize(model)
    assert any(map(is_open, opened.graph.node))
    names = [node.name for node in opened.graph.node]
    made = [o for node in opened.graph.node for o in node.output]
    assert len(set(names)) == len(names)
    assert len(set(made)) == len(made)
    closed = close_bodies(opened)
    onnx.checker.check_model(closed, full_check=True)
    assert not any(in_body(n) or is_open(n) for n in closed.graph.node)
    assert len(closed.graph.node) == len(model.graph.node)
    assert close_bodies(closed) is closed
    for inputs in both(analyze(model)):
        assert largest_difference(run_once(model, inputs), run_once(closed, inputs)) == 0
        assert largest_difference(run_once(model, inputs), run_once(opened, inputs)) == 0


@MODELS
def test_channels_inside_leave(deeper: bool) -> None:
    """Every body has a group of its own, and what bodies read of outside may leave; what they give leaves both.

    Each branch is proved, with a control.
    """
    graph = analyze(network(deeper))
    found = {g.name: len(g.units) for g in graph.groups}
    within = {"deep.first": 12, "deep.first_2": 12, "deep.second": 4} if deeper else {}
    assert found == {"before": 6, "last": 8, "first": 12, "first_2": 12, "second": 4, **within}
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    pruned = rewrite(kept)
    onnx.checker.check_model(pruned, full_check=True)
    other = swapped(kept, np.random.default_rng(1))
    assert other is not None
    caught = []
    for inputs in both(graph):
        assert verify(kept, pruned, inputs).passed
        caught.append(not verify(kept, rewrite(other), inputs).passed)
    assert any(caught)


def test_the_masked_original_by_hand() -> None:
    """Zeroes in the weights of the bodies, written where the source has them."""
    model = network()
    graph = analyze(model)
    group = next(g for g in graph.groups if g.name == "first")
    removed = np.zeros(graph.unit_count, dtype=bool)
    removed[group.units[:5]] = True
    by_hand = ModelProto.FromString(model.SerializeToString())
    node = next(n for n in by_hand.graph.node if n.op_type == "If")
    for tensor in node.attribute[0].g.initializer:  # whose names come first
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("first_w", "first_b"):
            array[:5] = 0
        elif tensor.name == "second_w":
            array[:, :5] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for inputs in both(graph):
        expected = run_once(by_hand, inputs)
        assert largest_difference(run_once(masked(PrunedGraph(graph, removed)), inputs), expected) <= 1e-6


def test_results_of_the_bodies_leave_together() -> None:
    graph = analyze(network())
    first, second = (graph.unit_of[graph.slots[name, 0]] for name in ("second_w", "second_w_2"))
    assert first.tolist() == second.tolist()
    assert not graph.pinned[first].any()
    assert graph.unit_of[graph.slots["behind_w", 1]].tolist() == first.tolist()


def test_from_plan_to_proof() -> None:
    model = load(network(deeper=True))
    analysis = TracedModel(model, analyze(model.proto))
    plan = op.plan(analysis, PlanSettings(ratio=0.5))
    assert {"first_w", "first_w_2"} <= plan.removed.keys()
    inputs = inputs_of(analysis.graph) | {"flag": np.array(True)}
    verification = prune(analysis, plan, inputs=inputs).verification
    assert verification is not None
    assert verification.passed


@MODELS
@pytest.mark.parametrize("flag", [True, False])
def test_on_data(deeper: bool, flag: bool) -> None:
    """Inputs that take one of the branches: channels are chosen by what they do to outputs, and layers repaired."""
    model = load(network(deeper))
    analysis = TracedModel(model, analyze(model.proto))
    batches = [inputs_of(analysis.graph, seed) | {"flag": np.array(flag)} for seed in range(4)]
    settings = PlanSettings(
        ratio=0.4, allocation="reconstruction", criterion="obs", constraints=Constraints(round_to=1)
    )
    plan = op.plan(analysis, settings, data=lambda: batches)
    pruned = prune(analysis, plan, inputs=batches[0])
    assert pruned.verification is not None
    assert pruned.verification.passed
    repairs = recover(apply_plan(analysis.graph, plan), pruned.proto, lambda: batches)
    assert {r.node for r in repairs} <= {"last", "behind"}
    assert all(r.after <= r.before for r in repairs)


def test_a_result_from_outside() -> None:
    """A body that gives a tensor of the main graph as it is, and one that gives a constant."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2,4] x, bool c) => (float[2,4] y) {
        a = Relu (x)
        e = If (c) <
            then_branch = t () => (float[2,4] p) { p = Identity (a) },
            else_branch = f () => (float[2,4] q) <float[2,4] k = {1, 2, 3, 4, 5, 6, 7, 8}> { q = Identity (k) }
        >
        y = Add (e, a)
    }"""
    model = onnx.parser.parse_model(text)
    closed = close_bodies(normalize(model))
    onnx.checker.check_model(closed, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    for flag in (True, False):
        inputs = {"x": x, "c": np.array(flag)}
        assert largest_difference(run_once(model, inputs), run_once(closed, inputs)) == 0
