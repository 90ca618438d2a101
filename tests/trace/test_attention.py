"""Fused attentions under either policy: whole heads leave, or a part of each head's width."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.normalize import normalize
from onnxprune.trace import trace
from onnxprune.trace.attention import attention_nodes
from tests.toolbox import Net, assert_proved, removal
from tests.trace.golden import Golden, build, found
from tests.trace.test_rules import GOLDEN

ATTENTIONS = [g for g in GOLDEN if g.operator.endswith("Attention") and any(w[0].isdigit() for w in g.expected)]


@pytest.mark.parametrize("golden", ATTENTIONS, ids=str)
def test_width(golden: Golden) -> None:
    """Heads stay, and the remaining width of each is verified; nothing leaves if only certain widths are supported."""
    graph = trace(normalize(build(golden)), attention="width")
    if "GroupQuery" in golden.operator:
        assert found(graph) == ("OP211",)
        return
    assert found(graph) != golden.expected
    for seed in range(3):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


def test_zero_points_are_no_factors() -> None:
    """A product with a weight isn't part of an attention, even if its input is scaled by a computed value."""
    net = Net()
    x = net.linear(net.input((2, 3, 6)), 8)
    q, _, zero = net.ops("DynamicQuantizeLinear", x, count=3)
    w = net.const(net.rng.integers(0, 255, (8, 5)).astype(np.uint8))
    net.output(net.op("MatMulInteger", q, w, zero))
    assert not attention_nodes(normalize(net.model()).graph)


def test_products_of_activations_are_factors() -> None:
    """Negative control: a product of two activations is."""
    net = Net()
    x = net.linear(net.input((2, 3, 6)), 8)
    q, _, zero = net.ops("DynamicQuantizeLinear", x, count=3)
    net.output(net.op("MatMulInteger", q, net.op("Transpose", q, perm=[0, 2, 1]), zero, zero))
    graph = normalize(net.model()).graph
    names = {graph.node[i].op_type for i in attention_nodes(graph)}
    assert {"MatMulInteger", "DynamicQuantizeLinear", "Transpose"} <= names
