"""Residual blocks: found, scored, removed by rewiring, and proved against the original with their branch at zero."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.model.file import load, save
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.planning.residual_blocks import choose_blocks, find_blocks, score_blocks, without_blocks
from onnxprune.recover import Method, recover
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.sensitivity import Curve, Point, curves_left
from onnxprune.settings.planning import Constraints, PlanSettings, Target
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.planning import sensitivities
from onnxprune.workflow.pruning import prune
from tests.toolbox import Net, assert_sound, inputs_of, largest_difference, run_once

DIGITS = Path(__file__).parents[2] / "models"
ONE = PlanSettings(ratio=0.0, remove_blocks=1)
SMALL = Constraints(round_to=1)


def residual(width: int = 8, blocks: int = 3) -> ModelProto:
    """A convolutional network of residual blocks, the first of which changes the width and can't leave."""
    net = Net(seed=1)
    x = net.op("LeakyRelu", net.conv(net.input((2, 3, 6, 6)), width // 2, 3, name="stem"))
    y = net.conv(net.op("LeakyRelu", net.conv(x, width, 3)), width, 3)
    x = net.op("LeakyRelu", net.op("Add", net.conv(x, width), y, name="wider"))
    for i in range(blocks):
        y = net.conv(net.op("LeakyRelu", net.conv(x, width, 3, name=f"first{i}")), width, 3, name=f"second{i}")
        x = net.op("LeakyRelu", net.op("Add", y, x, name=f"sum{i}"))
    net.output(net.conv(x, 4, name="head"))
    return net.model()


def transformer(last: bool = False) -> ModelProto:
    """Two pre-norm blocks of a perceptron; their sums are the model's output, or a layer reads them."""
    net = Net(seed=2)
    x = net.linear(net.input((2, 5, 6)), 12, name="in")
    for i in range(2):
        y = net.op("LayerNormalization", x, net.between(0.5, 1.5, 12), net.weight(12), name=f"norm{i}")
        y = net.linear(net.op("Tanh", net.linear(y, 20, name=f"up{i}")), 12, name=f"down{i}")
        x = net.op("Add", x, y, name=f"sum{i}")
    net.output(x if last else net.linear(x, 3, name="out"))
    return net.model()


def traced(model: ModelProto) -> ChannelGraph:
    return analyze(model).graph


def dense_without(graph: ChannelGraph, name: str) -> ChannelGraph:
    return without_blocks(graph, [name]).graph


def test_what_is_a_block() -> None:
    blocks = find_blocks(traced(residual()))
    assert [b.name for b in blocks] == ["sum0", "sum1", "sum2"]
    assert set(blocks[0].weights) == {"first0_w", "first0_b", "second0_w", "second0_b"}
    assert len(blocks[0].nodes) == 3


def test_a_branch_that_others_need_is_none() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8)
    y = net.conv(x, 8, name="branch")
    net.output(net.conv(net.op("Add", x, y), 2))
    net.output(net.conv(y, 2))
    assert not find_blocks(traced(net.model()))


def test_sums_of_unrelated_tensors_and_without_weights_are_none() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8)
    left, right = net.conv(x, 8), net.conv(x, 8)
    y = net.op("Add", left, right)
    net.output(net.conv(net.op("Add", y, net.op("Tanh", y)), 2))
    assert not find_blocks(traced(net.model()))


def test_the_innermost_of_nested_blocks() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 6, 6)), 8)
    y = net.conv(x, 8)
    y = net.op("Add", y, net.conv(y, 8), name="inner")
    net.output(net.conv(net.op("Add", x, y, name="outer"), 2))
    assert [b.name for b in find_blocks(traced(net.model()))] == ["inner"]


def test_quantized_blocks() -> None:
    """The skip is dequantized by itself: it is the same data nevertheless."""
    net = Net(opset=13)
    scale, zero = net.const(np.float32(0.1)), net.const(np.int8(0))

    def rounded(x: str) -> str:
        return net.op("QuantizeLinear", x, scale, zero)

    q = rounded(net.conv(net.input((1, 3, 6, 6)), 8))
    y = rounded(net.conv(net.op("DequantizeLinear", q, scale, zero), 8))
    a, b = (net.op("DequantizeLinear", t, scale, zero) for t in (q, y))
    net.output(net.conv(net.op("Add", a, b, name="sum"), 2))
    assert [b.name for b in find_blocks(traced(net.model()))] == ["sum"]


@pytest.mark.parametrize("model", [residual(), transformer(), transformer(last=True)], ids=["cnn", "mlp", "output"])
def test_each_block_leaves_and_is_proved(model: ModelProto) -> None:
    """With the branch at zero the original computes the same; with another block's at zero it doesn't."""
    analysis = analyze(model)
    blocks = find_blocks(analysis.graph)
    inputs = inputs_of(analysis.graph)
    for block in blocks:
        kept = PrunedGraph(dense_without(analysis.graph, block.name))
        pruned = rewrite(kept)
        assert_sound(kept, pruned)
        assert verify(kept, pruned, inputs).passed
        gone = {t.name for t in pruned.graph.initializer}.isdisjoint(block.weights)
        assert gone and not {n.name for n in pruned.graph.node} & set(block.nodes)
        other = next(b.name for b in blocks if b is not block)
        assert not verify(kept, rewrite(PrunedGraph(dense_without(analysis.graph, other))), inputs).passed


def test_zeroed_by_hand() -> None:
    """The oracle itself, against weights of the branch's last layer set to zero, which makes the branch zero."""
    graph = traced(residual())
    kept = PrunedGraph(dense_without(graph, "sum1"))
    model = ModelProto.FromString(graph.proto.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in ("second1_w", "second1_b"):
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    inputs = inputs_of(graph)
    assert largest_difference(run_once(masked(kept), inputs), run_once(model, inputs)) <= 1e-6


@pytest.mark.parametrize("model", [residual(), transformer()], ids=["cnn", "mlp"])
def test_blocks_and_channels(model: ModelProto) -> None:
    """A plan that removes both, its cost a share of the whole model's, predicted exactly."""
    analysis = analyze(model)
    plan = op.plan(analysis, PlanSettings(target=Target("macs", 0.4), remove_blocks=1, constraints=SMALL))
    assert len(plan.blocks) == 1
    assert plan.removed
    assert plan.before == cost(PrunedGraph(analysis.graph)).totals()
    assert plan.after["macs"] <= 0.4 * plan.before["macs"]
    pruned = prune(analysis, plan)
    assert pruned.verification is not None
    assert pruned.verification.error < 1e-4 < min(o.change for o in pruned.verification.outputs)
    kept = apply_plan(analysis.graph, plan)
    assert_sound(kept, pruned.proto)
    assert cost(kept).totals() == dict(plan.after)


def test_a_budget_that_the_blocks_meet() -> None:
    plan = op.plan(analyze(residual()), PlanSettings(target=Target("params", 0.95), remove_blocks=2))
    assert len(plan.blocks) == 2
    assert not plan.removed


@pytest.mark.parametrize("strength,expected", [(1e-4, ["sum1"]), (5.0, [])], ids=["idle", "needed"])
def test_as_many_as_pay(strength: float, expected: list[str]) -> None:
    """A block that does next to nothing leaves before any channel; the control: none leaves if all of them matter."""
    model = residual()
    for tensor in model.graph.initializer:
        if tensor.name.startswith("second"):
            scale = strength if tensor.name.startswith("second1") else max(strength, 1.0)
            tensor.CopyFrom(numpy_helper.from_array(np.float32(scale) * numpy_helper.to_array(tensor), tensor.name))
    rng = np.random.default_rng(0)
    inputs = [{"input0": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(12)]
    settings = PlanSettings(
        target=Target("macs", 0.6),
        allocation="reconstruction",
        criterion="obs",
        remove_blocks="auto",
        constraints=SMALL,
    )
    analysis = analyze(model)
    plan = op.plan(analysis, settings, data=lambda: inputs)
    assert list(plan.blocks) == expected
    assert plan.after["macs"] <= 0.6 * plan.before["macs"]
    assert prune(analysis, plan).verification is not None


def test_sensitivities_of_the_whole_network_serve() -> None:
    """A curve is of the same weights without a block; the control: one of a group inside of it has no place left."""
    graph = traced(residual())
    rest = dense_without(graph, "sum1")
    curves = [Curve(g.index, tuple(range(len(g.units))), (Point(1, 0.1 + g.index),)) for g in graph.groups]
    inside = {g.index for g in graph.groups if any(tensor == "first1_w" and axis == 0 for tensor, axis in g.slots)}
    left = curves_left(curves, graph, rest)
    assert len(inside) == 1 and len(left) == len(curves) - 1 == len(rest.groups)
    assert not any(curve.points == curves[i].points for curve in left for i in inside)
    for curve in left:
        before = next(c for c in curves if c.points == curve.points)
        now, then = rest.groups[curve.group], graph.groups[before.group]
        assert set(now.slots) <= set(then.slots)
        assert len(now.units) == len(then.units)
    assert curves_left(curves, graph, graph) == curves


def test_measured_before_or_now() -> None:
    """Sensitivities that are given lead to the plan that measuring them does; the control: others don't."""
    analysis = analyze(residual())
    batches = [inputs_of(analysis.graph, seed) for seed in range(6)]
    settings = PlanSettings(
        target=Target("macs", 0.5),
        allocation="reconstruction",
        criterion="obs",
        remove_blocks=1,
        constraints=SMALL,
    )
    curves = sensitivities(analysis, settings, lambda: batches)
    others = [replace(c, points=tuple(Point(p.removed, 10.0**c.group * p.removed) for p in c.points)) for c in curves]
    now, before, other = (
        op.plan(analysis, settings, data=lambda: batches, sensitivity=given) for given in (None, curves, others)
    )
    assert now.blocks == before.blocks == other.blocks
    assert now.removed == before.removed != other.removed


def test_auto_needs_inputs_and_a_target() -> None:
    analysis, share = analyze(residual()), Target("macs", 0.5)
    for settings, code in (
        (PlanSettings(target=share), "OP302"),
        (PlanSettings(ratio=0.2, allocation="reconstruction"), "OP302"),
        (PlanSettings(target=Target("latency", 0.5), allocation="reconstruction"), "OP302"),
        (PlanSettings(target=share, allocation="reconstruction"), "OP312"),
    ):
        with pytest.raises(PlanError) as caught:
            op.plan(analysis, replace(settings, remove_blocks="auto"))
        assert caught.value.code == code


def test_weight_norms() -> None:
    """Without data the block with the smallest weights goes, whatever their number."""
    graph = traced(residual())
    arrays = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.proto.graph.initializer}
    scores = score_blocks(graph, find_blocks(graph))
    for i, found in enumerate(scores):
        both = np.concatenate([arrays[f"first{i}_w"].ravel(), arrays[f"second{i}_w"].ravel()])
        assert found == pytest.approx(np.sqrt((both**2).mean()), rel=1e-5)
    assert choose_blocks(graph, 1) == (f"sum{int(np.argmin(scores))}",)


def test_influence() -> None:
    """With data the block goes that turns its input least, by the mean cosine over samples."""
    graph = traced(residual())
    blocks = find_blocks(graph)
    batches = [inputs_of(graph, seed) for seed in range(3)]
    watched = ModelProto.FromString(graph.proto.SerializeToString())
    for block in blocks:
        for name in (block.skip, block.output):
            if name not in {o.name for o in watched.graph.output}:
                watched.graph.output.add(name=name)
    runs = [run_once(watched, batch) for batch in batches]
    scores = score_blocks(graph, blocks, lambda: batches)
    for block, found in zip(blocks, scores, strict=True):
        x = np.concatenate([r[block.skip] for r in runs]).reshape(6, -1)
        y = np.concatenate([r[block.output] for r in runs]).reshape(6, -1)
        cosines = [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in zip(x, y, strict=True)]
        assert found == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert choose_blocks(graph, 2, lambda: batches) == tuple(f"sum{i}" for i in sorted(np.argsort(scores)[:2].tolist()))


def test_the_layer_behind_does_the_work_of_a_linear_block() -> None:
    """W(x + Ax) is a product of one matrix with x, which a repair finds; the control: without the block as the goal."""
    net = Net(seed=3)
    x = net.conv(net.input((8, 3, 6, 6)), 8, 3, name="stem")
    net.output(net.conv(net.op("Add", x, net.conv(x, 8, name="linear"), name="sum"), 4, name="head"))
    graph = traced(net.model())
    kept, batches = without_blocks(graph, ["sum"]), [inputs_of(graph, seed) for seed in range(4)]
    goal, other = run_once(graph.proto, batches[3]), rewrite(kept)
    errors = [largest_difference(run_once(other, batches[3]), goal)]
    for teacher in (None, kept.graph.proto):
        model = rewrite(kept)
        recover(kept, model, lambda: batches[:3], teacher=teacher)
        errors.append(largest_difference(run_once(model, batches[3]), goal))
    assert errors[1] < 1e-2 * errors[0]
    assert errors[2] > 0.9 * errors[0]


@pytest.mark.parametrize("method,least", [("reconstruct", 0.2), ("bn", 0.8)])
def test_a_trained_network_without_a_block_is_repaired(method: Method, least: float) -> None:
    """Judged on images that didn't repair it; the control: the network without the block as the goal."""
    graph = analyze(DIGITS / "digits_resnet.onnx").graph
    kept = without_blocks(graph, [find_blocks(graph)[0].name])
    with np.load(DIGITS / "digits_test.npz", allow_pickle=False) as data:
        fitted, judged = data["images"][::2], {"image": data["images"][1::2]}
    goal = run_once(graph.proto, judged)["logits"]

    def error(model: ModelProto) -> float:
        return float(np.square(run_once(model, judged)["logits"] - goal).mean())

    def batches() -> list[dict[str, np.ndarray]]:
        return [{"image": fitted[i : i + 32]} for i in range(0, len(fitted), 32)]

    models = [rewrite(kept) for _ in range(3)]
    assert recover(kept, models[1], batches, method=method)
    recover(kept, models[2], batches, method=method, teacher=kept.graph.proto)
    before, after, control = map(error, models)
    assert after < least * before
    assert control > 0.9 * before


def test_a_plan_on_file() -> None:
    analysis = analyze(residual())
    plan = op.plan(analysis, ONE)
    document = json.loads(plan.to_json())
    assert (document["format"], document["blocks"]) == (5, list(plan.blocks))
    again = PrunePlan.from_json(plan.to_json())
    assert (again.blocks, again.digest) == (plan.blocks, plan.digest)
    del document["blocks"]
    older = PrunePlan.from_json(json.dumps({**document, "format": 1}))
    assert older.blocks == ()
    assert older.digest != plan.digest


def test_refusals() -> None:
    analysis = analyze(residual())
    with pytest.raises(PlanError) as caught:
        op.plan(analysis, PlanSettings(ratio=0.0, remove_blocks=4))
    assert caught.value.code == "OP315"
    assert "sum0, sum1, sum2" in str(caught.value)
    with pytest.raises(PlanError) as caught:
        apply_plan(analysis.graph, PrunePlan("", {}, blocks=("wider",)))
    assert caught.value.code == "OP307"
    with pytest.raises(PlanError) as caught:
        choose_blocks(analysis.graph, -1)
    assert caught.value.code == "OP303"


def test_what_leaves_is_known() -> None:
    graph = traced(residual())
    reduced = without_blocks(graph, ["sum1"])
    assert reduced.original is graph and reduced.graph is not graph
    assert [b.name for b in reduced.blocks] == ["sum1"]
    assert not reduced.removed.any()
    other = reduced.without(~reduced.graph.pinned)
    assert (other.original, other.blocks) == (graph, reduced.blocks) and other.removed.any()
    assert without_blocks(graph, []).graph is graph


def test_command_line(tmp_path: Path) -> None:
    """`plan` writes the blocks down, `prune --plan` removes them, `verify --plan` proves it."""
    model, plan, out = tmp_path / "m.onnx", tmp_path / "plan.json", tmp_path / "out.onnx"
    save(load(residual()), model)
    run = CliRunner()

    def ok(*arguments: object) -> str:
        result = run.invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    told = ok("plan", model, "-o", plan, "--remove-blocks", 1, "--target", "macs=50%")
    assert "removed 1 residual block: sum" in " ".join(told.split())
    ok("prune", model, "-o", out, "--plan", plan)
    ok("verify", model, out, "--plan", plan)
    direct = json.loads(ok("prune", model, "-o", tmp_path / "b.onnx", "--remove-blocks", 1, "--format", "json"))
    assert direct["blocks"] == json.loads(plan.read_text())["blocks"]
    for number in ("9", "-1", "many", "auto"):  # the last needs inputs
        result = run.invoke(cli, ["plan", str(model), "-o", "-", "--remove-blocks", number])
        assert result.exit_code == 2


def test_analysis_stays_whole() -> None:
    """Planning doesn't change the analysis that it is given."""
    analysis = analyze(residual())
    before = TracedModel(analysis.model, analysis.graph)
    op.plan(analysis, ONE)
    assert analysis.graph is before.graph
