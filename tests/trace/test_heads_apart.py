"""Weights of (heads, width): the channels of a projection that is split into heads meet both axes apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.normalize import normalize
from onnxprune.settings.planning import Attention
from onnxprune.trace import ChannelGraph, trace
from tests.toolbox import Net, assert_proved, removal

STEPS, HEADS, WIDTH = 6, 4, 8


def split(net: Net, x: str, weight: str) -> str:
    """Project and split into heads: [1, steps, heads, width]."""
    return net.reshape(net.op("MatMul", x, weight, name=f"make_{weight}"), [1, -1, HEADS, WIDTH])


def relative(*, folded: bool) -> Net:
    """Attention with relative positions of a fixed length: (q + u) k + (q + v) p.

    Dai et al., Transformer-XL (2019). The positions' keys p are a product of weights, or folded into one weight.
    """
    net = Net()
    x = net.input((1, STEPS, 16), "x")
    q, k, v = (split(net, x, net.weight(16, HEADS * WIDTH, name=name, fan_in=16)) for name in "qkv")
    u, w = (net.weight(HEADS, WIDTH, name=name) for name in ("u", "w"))
    if folded:
        keys = net.weight(1, HEADS, WIDTH, STEPS, name="p")
    else:
        table = net.weight(1, STEPS, 32, name="table")
        keys = net.op("Transpose", split(net, table, net.weight(32, HEADS * WIDTH, name="p")), perm=[0, 2, 3, 1])
    queries = [net.op("Transpose", net.op("Add", q, b), perm=[0, 2, 1, 3]) for b in (u, w)]
    content = net.op("MatMul", queries[0], net.op("Transpose", k, perm=[0, 2, 3, 1]))
    scores = net.op("Softmax", net.op("Add", content, net.op("MatMul", queries[1], keys, name="positions")), axis=-1)
    made = net.op("MatMul", scores, net.op("Transpose", v, perm=[0, 2, 1, 3]))
    joined = net.reshape(net.op("Transpose", made, perm=[0, 2, 1, 3]), [1, -1, HEADS * WIDTH])
    net.output(net.op("MatMul", joined, net.weight(HEADS * WIDTH, 3, name="o"), name="out"))
    return net


def graph_attention() -> Net:
    """Attention over the edges of a graph, its scores a sum of products with a weight of (1, heads, width).

    Velickovic et al., Graph attention networks (2018), without the normalization over neighbors.
    """
    net = Net()
    nodes, edges = 10, 30
    x = net.input((nodes, 16), "x")
    ends = [net.input((edges,), name, dtype=7) for name in ("source", "target")]
    h = net.op("MatMul", x, net.weight(16, HEADS * WIDTH, name="project", fan_in=16), name="project")
    h = net.reshape(h, [-1, HEADS, WIDTH])
    halves = []
    for end, name in zip(ends, ("a_source", "a_target"), strict=True):
        product = net.op("Mul", h, net.weight(1, HEADS, WIDTH, name=name))
        halves.append(net.op("Gather", net.reduce("ReduceSum", product, [-1], keepdims=0), end))
    alpha = net.op("Sigmoid", net.op("LeakyRelu", net.op("Add", *halves)))
    messages = net.op("Mul", net.op("Gather", h, ends[0]), net.unsqueeze(alpha, [2]))
    total = net.op(
        "ScatterND", net.op("Mul", h, net.const(0.0)), net.unsqueeze(ends[1], [1]), messages, reduction="add"
    )
    joined = net.op("Add", net.reshape(total, [-1, HEADS * WIDTH]), net.weight(HEADS * WIDTH, name="bias"))
    net.output(net.op("MatMul", joined, net.weight(HEADS * WIDTH, 3, name="out"), name="out"))
    return net


CASES: dict[str, Callable[[], Net]] = {
    "table": lambda: relative(folded=False),
    "folded": lambda: relative(folded=True),
    "graph": graph_attention,
}
SLOTS = {
    "table": {("q", 1), ("k", 1), ("v", 1), ("p", 1), ("u", 0), ("w", 0), ("o", 0)},
    "folded": {("q", 1), ("k", 1), ("v", 1), ("p", 1), ("u", 0), ("w", 0), ("o", 0)},
    "graph": {("project", 1), ("a_source", 1), ("a_target", 1), ("bias", 0), ("out", 0)},
}
_WIDTH = {"u": 1, "w": 1, "a_source": 2, "a_target": 2}  # axes of a head's width


def of_heads(graph: ChannelGraph) -> list[tuple[int, int, set[tuple[str, int]]]]:
    return [(len(g.units), g.width, set(g.slots)) for g in graph.groups if len(g.slots) > 2]


@pytest.mark.parametrize("name", CASES)
def test_heads_leave(name: str) -> None:
    graph = trace(normalize(CASES[name]().model()))
    assert of_heads(graph) == [(HEADS, WIDTH, SLOTS[name])]
    for seed in range(3):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


@pytest.mark.parametrize("policy", ["heads", "width"])
@pytest.mark.parametrize("name", CASES)
def test_the_policy_says_what_leaves(name: str, policy: Attention) -> None:
    """Each group takes heads of (heads, width), or a part of the width, but never both."""
    graph = trace(normalize(CASES[name]().model()), attention=policy)
    taken = {(t, a) for g in graph.groups for t, a in g.slots if t in _WIDTH}
    wanted = {(t, a if policy == "width" else a - 1) for t, a in _WIDTH.items() if t in {s for s, _ in SLOTS[name]}}
    assert taken == wanted
    for seed in range(3):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))
