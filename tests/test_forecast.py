"""Forecasts: equal to counting the model afresh, whatever was asked before."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from onnxprune.cost.cost import cost
from onnxprune.cost.forecast import Forecast
from onnxprune.settings.planning import QUANTITIES, Quantity
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.nets import Sample, samples
from tests.toolbox import Net, analyze, removal


@given(samples(most=8), st.sampled_from(QUANTITIES), st.integers(0, 2**16))
@settings(max_examples=80)
def test_equals_the_count_of_every_removal(sample: Sample, quantity: Quantity, seed: int) -> None:
    graph, rng = analyze(sample.model, sample.shapes), np.random.default_rng(seed)
    forecast = Forecast(graph, quantity)
    removals = [PrunedGraph(graph), *(removal(graph.groups, graph, rng) for _ in range(3))]
    for kept in [*removals, *reversed(removals)]:  # each once after a larger model, once after a smaller one
        assert forecast(kept.removed) == cost(kept).totals()[quantity]


def test_sees_a_single_channel_less() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 8, name="first")
    net.output(net.conv(x, 4, name="last"))
    graph = analyze(net.model())
    forecast, removed = Forecast(graph, "macs"), np.zeros(graph.unit_count, dtype=bool)
    before = forecast(removed)
    removed[graph.groups[0].units[0]] = True
    per_channel = 8 * 8 * (3 + 4)  # 1x1 convolutions: it is made from 3 channels and read for 4
    kernel = graph.shapes.shapes["first_w"][2]
    assert before - forecast(removed) == per_channel * kernel**2
