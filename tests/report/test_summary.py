"""Figures of a network that is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.report.index import Index, Reach
from onnxprune.report.summary import PinSummary, summarize, summarize_pins, summarize_plan
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.report.network import MACS, PARAMS, network
from tests.toolbox import Net, analyze, removal


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return analyze(network())


def test_model(graph: ChannelGraph) -> None:
    summary = summarize(graph)
    assert (summary.cost.params, summary.cost.macs) == (PARAMS, MACS)
    assert summary.prunable == PARAMS - 10  # all but the shift of the output
    assert (summary.weighted, summary.reached) == (4, 4)
    assert summary.inputs == {"image": (1, 3, 8, 8)}


def test_groups(graph: ChannelGraph) -> None:
    stem, joined = summarize(graph).groups
    assert (stem.group.name, len(stem.group.units), stem.params) == ("stem", 16, 448 + 128 + 128)
    assert (joined.group.name, len(joined.group.units), joined.params) == ("left", 8, 136 + 136 + 80)


def test_layers(graph: ChannelGraph) -> None:
    stem, left, right, head = summarize(graph).layers
    assert (stem.reads, stem.makes) == (Reach(pins=("OP201",)), Reach(groups=(0,)))
    assert (left.reads, left.makes) == (Reach(groups=(0,)), Reach(groups=(1,)))
    assert (right.reads, right.makes) == (left.reads, left.makes)
    assert (head.reads, head.makes) == (Reach(groups=(1,)), Reach(pins=("OP202",)))


def test_pins(graph: ChannelGraph) -> None:
    output, image = summarize_pins(Index(graph))
    assert output == PinSummary(
        "OP202", layers=("head", "shift"), by=('graph output "shift_out0"',), held=80 + 10, locked=10
    )
    assert image == PinSummary("OP201", layers=("stem",), by=('Conv "stem"',), held=432, locked=0)


def test_what_reasons_hold_and_lock_adds_up_by_brute_force(graph: ChannelGraph) -> None:
    index = Index(graph)
    pinned_by = {code: set(np.flatnonzero(mask)) for code, mask in index.pinned_by.items()}
    for pin in summarize_pins(index):
        held = locked = 0
        for weight in index.weights:
            for position in np.ndindex(weight.shape):
                units = {int(weight.units[axis][position[axis]]) for axis in weight.units}
                held += bool(units & pinned_by[pin.code])
                locked += bool(units & pinned_by[pin.code]) and bool(graph.pinned[list(units)].all())
        assert (pin.held, pin.locked) == (held, locked)


def test_depthwise_reads_and_makes_the_same_channels() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 8, 3, name="stem")
    x = net.conv(x, 8, 3, group=8, name="depthwise")
    net.output(net.conv(x, 4, name="head"))
    depthwise = summarize(analyze(net.model())).layers[1]
    assert depthwise.reads == depthwise.makes == Reach(groups=(0,))


def test_product_of_activations_has_no_weights() -> None:
    net = Net()
    x = net.input((2, 6, 16))
    keys = net.op("Transpose", net.linear(x, 8, name="keys"), perm=[0, 2, 1])
    scores = net.op("MatMul", net.linear(x, 8, name="queries"), keys, name="scores")
    net.output(net.op("Softmax", scores, axis=-1))
    summary = summarize(analyze(net.model()))
    scored = next(layer for layer in summary.layers if layer.cost.node == "scores")
    assert not scored.weighted
    assert summary.weighted == 2


def test_the_only_unit_is_explained() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 6, 3, name="stem")
    x = net.op("Add", x, net.op("Concat", *net.split(x, [3, 3], 1)[::-1], axis=1))  # ties i to i+3
    x = net.op("Mul", x, net.reduce("ReduceMax", x, [2, 3]))
    net.output(net.conv(x, 4, name="head"))
    codes = {pin.code for pin in summarize_pins(Index(analyze(net.model())))}
    assert codes <= {"OP201", "OP202", "OP206", "OP210"}


def test_plan(graph: ChannelGraph) -> None:
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    summary = summarize_plan(kept)
    assert [change.removed for change in summary.groups] == [
        int(kept.removed[group.units].sum()) for group in graph.groups
    ]
    assert all(change.kept + change.removed == len(change.group.units) for change in summary.groups)
    stem, joined = (change.kept for change in summary.groups)
    assert summary.after.params == stem * 28 + 2 * (joined * stem + joined) + joined * 10 + 10
    assert summary.before.params == PARAMS


def test_nothing_removed(graph: ChannelGraph) -> None:
    kept: PrunedGraph = PrunedGraph(graph)
    summary = summarize_plan(kept)
    assert summary.before == summary.after
    assert not any(change.removed for change in summary.groups)
