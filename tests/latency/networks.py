"""Networks for latency: small ones whose layers take long enough to be measured."""

from __future__ import annotations

import numpy as np

from onnxprune.latency.widths import CandidateWidths, candidate_widths
from onnxprune.planning.budget import candidate_steps
from onnxprune.settings.planning import Constraints
from onnxprune.trace.graph import ChannelGraph
from tests.toolbox import Net, analyze


def residual(width: int = 32, size: int = 24) -> ChannelGraph:
    """Build a network of a stem, two residual blocks and a joint of two branches."""
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, size, size)), width, 3, name="stem"))
    for block in ("a", "b"):
        inner = net.op("Relu", net.conv(x, 2 * width, 3, name=f"{block}1"))
        x = net.op("Relu", net.op("Add", net.conv(inner, width, 3, name=f"{block}2"), x))
    left, right = net.conv(x, width, 1, name="left"), net.conv(x, width, 3, name="right")
    joint = net.op("Relu", net.op("Concat", left, right, axis=1))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.conv(joint, 2 * width, 1, name="joint")))
    net.output(net.linear(pooled, 10, name="head"))
    return analyze(net.model())


def chain(layers: int = 8, width: int = 32) -> ChannelGraph:
    """Build a network of one layer after the other, every one of which can be cut by itself."""
    net = Net()
    x = net.input((1, 3, 16, 16))
    for _ in range(layers):
        x = net.op("Relu", net.conv(x, width, 3))
    net.output(net.conv(x, 4, 1))
    return analyze(net.model())


def candidates_of(graph: ChannelGraph, constraints: Constraints | None = None, seed: int = 0) -> list[CandidateWidths]:
    """Return candidate widths for random scores."""
    rng = np.random.default_rng(seed)
    scores = [rng.uniform(0.5, 1.5, len(group.units)) for group in graph.groups]
    _, ways = candidate_steps(graph, scores, constraints or Constraints())
    return [
        candidate_widths(graph, graph.groups[i], scores[i], steps, errors=False) for i, steps in ways.items() if steps
    ]
