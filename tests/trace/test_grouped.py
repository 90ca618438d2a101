"""Grouped convolutions: each group drops its own least important channels in equal number, or whole groups leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

from onnxprune.cli import cli
from onnxprune.errors import PlanError
from onnxprune.importance import score
from onnxprune.model.file import load, save
from onnxprune.normalize import normalize
from onnxprune.planning.budget import choose
from onnxprune.planning.plan import PrunePlan, apply_plan, plan_of
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.settings.planning import Constraints, Policies
from onnxprune.trace import trace
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.toolbox import Net, analyze, assert_proved, inputs_of, removal, swapped

HALF = Constraints(round_to=1)


def grouped(groups: int = 2, inner: int = 8, outer: int = 8) -> ModelProto:
    """Return a grouped convolution between two others."""
    net = Net(seed=3)
    x = net.op("LeakyRelu", net.conv(net.input((1, 3, 6, 6)), inner, 3, name="in"))
    x = net.op("LeakyRelu", net.conv(x, outer, 3, group=groups, name="grouped"))
    net.output(net.conv(x, 2, name="out"))
    return net.model()


def assert_caught(kept: PrunedGraph) -> None:
    """Negative control: removing another channel of the same group doesn't verify."""
    other = swapped(kept, np.random.default_rng(0))
    assert other is not None
    assert not verify(kept, rewrite(other), inputs_of(kept.graph)).passed


def faded(model: ModelProto, channels: list[int]) -> ModelProto:
    """Scale down some outputs of the grouped convolution, and the weights that read them."""
    for entry in model.graph.initializer:
        if entry.name in ("grouped_w", "out_w"):
            array = numpy_helper.to_array(entry).copy()
            array[(channels,) if entry.name == "grouped_w" else (slice(None), channels)] *= 0.01
            entry.CopyFrom(numpy_helper.from_array(array, entry.name))
    return model


def removed_channels(graph: ChannelGraph, tensor: str, removed: np.ndarray) -> list[int]:
    return np.flatnonzero(removed[graph.unit_of[graph.slots[tensor, 0]]]).tolist()


def test_each_group_drops_its_own() -> None:
    """The least important channels are 0 and 1 of the first group, 2 and 3 of the second: no index is shared."""
    graph = analyze(faded(grouped(), [0, 1, 6, 7]))
    removed = choose(graph, score(graph, "l1"), HALF, ratio=0.5)
    assert removed_channels(graph, "grouped_w", removed) == [0, 1, 6, 7]
    kept = PrunedGraph(graph, removed)
    pruned = assert_proved(kept)
    assert {a.name: a.i for a in pruned.graph.node[2].attribute}["group"] == 2
    assert_caught(kept)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_any_balanced_removal_is_right(groups: int, seed: int) -> None:
    graph = analyze(grouped(groups, 4 * groups, 3 * groups))
    kept = removal(graph.groups, graph, np.random.default_rng(seed))
    assert_proved(kept)
    assert_caught(kept)


def test_weights_are_sliced_group_by_group() -> None:
    """The rewritten weight equals the result of plain loops."""
    graph = analyze(grouped())
    kept = removal(graph.groups, graph, np.random.default_rng(1))
    before = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}["grouped_w"]
    after = {t.name: numpy_helper.to_array(t) for t in rewrite(kept).graph.initializer}["grouped_w"]
    inner = set(removed_channels(graph, "in_w", kept.removed))
    outer = set(removed_channels(graph, "grouped_w", kept.removed))
    rows = [
        [before[o, i % 4] for i in range(8) if i // 4 == o // 4 and i not in inner] for o in range(8) if o not in outer
    ]
    np.testing.assert_array_equal(after, np.array(rows))


def test_a_plan_that_is_out_of_balance_is_refused() -> None:
    graph = analyze(grouped())
    units = graph.unit_of[graph.slots["grouped_w", 0]]
    removed = np.zeros(graph.unit_count, dtype=bool)
    removed[units[[0, 1]]] = True
    assert not graph.balanced(removed)
    with pytest.raises(PlanError, match="more from one group") as caught:
        apply_plan(graph, plan_of(PrunedGraph(graph, removed), "0" * 64, {}))
    assert caught.value.code == "OP307"
    removed[units[[5, 7]]] = True
    assert graph.balanced(removed)
    assert (apply_plan(graph, plan_of(PrunedGraph(graph, removed), "0" * 64, {})).removed == removed).all()


def test_channels_without_a_partner_in_the_other_group_stay() -> None:
    """If half of the grouped convolution's input is the model's, the other half can't leave alone."""
    net = Net()
    x = net.input((1, 4, 6, 6))
    x = net.op("Concat", x, net.conv(x, 4, 3, name="in"), axis=1)
    net.output(net.conv(net.conv(x, 8, 3, group=2, name="grouped"), 2, name="out"))
    graph = analyze(net.model())
    (unit, *_) = graph.unit_of[graph.slots["in_w", 0]]
    assert [pin.code for pin in graph.pins(int(unit))] == ["OP216"]
    assert {group.name for group in graph.groups} == {"grouped"}
    assert_proved(removal(graph.groups, graph, np.random.default_rng(0)))


def test_whole_groups_leave() -> None:
    """With `--grouped groups` a group's inputs leave with its outputs, and the attribute decreases."""
    graph = trace(normalize(grouped(4, 8, 12)), grouped="groups")
    (group,) = graph.groups
    assert (len(group.units), group.sets.shape) == (4, (4, 1))
    assert {(s.tensor, s.axis): s.positions.tolist() for s in graph.unit(int(group.units[1])).slices} == {
        ("in_w", 0): [2, 3],
        ("in_b", 0): [2, 3],
        ("grouped_w", 0): [3, 4, 5],
        ("grouped_b", 0): [3, 4, 5],
        ("out_w", 1): [3, 4, 5],
    }
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    pruned = assert_proved(kept)
    assert {a.name: a.i for a in pruned.graph.node[2].attribute}["group"] == 4 - kept.removed.sum()
    assert_caught(kept)


@pytest.mark.parametrize("inner,outer", [(4, 12), (12, 4)])
def test_groups_of_one_channel_leave_whole(inner: int, outer: int) -> None:
    """A depthwise convolution with a multiplier, and its counterpart that sums each group up."""
    graph = analyze(grouped(4, inner, outer))
    assert {len(g.units) for g in graph.groups} == {4}
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    assert_proved(kept)
    assert_caught(kept)


def test_dequantized_weights() -> None:
    """The weight is dequantized, with a scale for each output channel, before the convolution reads it."""
    rng = np.random.default_rng(0)
    net = Net(opset=13)
    x = net.op("LeakyRelu", net.conv(net.input((1, 3, 6, 6)), 8, 3))
    data = net.const(rng.integers(-127, 127, (6, 4, 3, 3)).astype(np.int8), "weight")
    scales = net.const((0.01 * rng.random(6)).astype(np.float32), "scales")
    zeros = net.const(np.zeros(6, dtype=np.int8), "zeros")
    weight = net.op("DequantizeLinear", data, scales, zeros, axis=0)
    net.output(net.conv(net.op("Conv", x, weight, group=2, name="grouped"), 2))
    graph = analyze(net.model())
    assert [g.sets.shape for g in graph.groups] == [(4, 2), (3, 2)]
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    assert_proved(kept)
    assert_caught(kept)


def test_a_weight_with_two_readers_is_pruned_by_index() -> None:
    """Another node reads the whole weight, so all groups drop the same positions."""
    net = Net()
    x = net.op("LeakyRelu", net.conv(net.input((1, 3, 6, 6)), 8, 3))
    y = net.conv(x, 8, group=2, name="grouped")
    z = net.op("Conv", x, "grouped_w", group=2, name="again")
    net.output(net.conv(net.op("Add", y, z), 2))
    graph = analyze(net.model())
    assert not graph.per_group
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    assert_proved(kept)


def test_the_policy_is_part_of_the_plan(tmp_path: Path) -> None:
    """A plan records `--grouped groups`, so that `prune --plan` traces in the same way; another policy is an error."""
    model, plan = tmp_path / "m.onnx", tmp_path / "p.json"
    save(load(grouped(4, 8, 12)), model)
    run = CliRunner()

    def invoke(*arguments: object) -> int:
        return run.invoke(cli, [str(a) for a in arguments]).exit_code

    assert invoke("plan", model, "-o", plan, "--ratio", 0.5, "--grouped", "groups") == 0
    document = json.loads(plan.read_text())
    assert document["settings"]["grouped"] == "groups"
    assert document["removed"]["grouped_w"].keys() == {"0"}
    assert invoke("prune", model, "-o", tmp_path / "a.onnx", "--plan", plan, "--grouped", "channels") == 2
    assert invoke("prune", model, "-o", tmp_path / "a.onnx", "--plan", plan) == 0
    assert invoke("verify", model, tmp_path / "a.onnx", "--plan", plan) == 0
    other = PrunePlan("", {}, settings={"grouped": "nothing we know"})
    assert other.policies == Policies("heads", "channels")
