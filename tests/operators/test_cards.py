"""Cards agree: what one facet of an operator says, the others know of, or they say why not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from onnx import NodeProto

from onnxprune.autodiff.prepare import differentiable
from onnxprune.operators.card import cards
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.recover.layers import find_layers
from onnxprune.trace import ChannelGraph
from tests.toolbox import Net, analyze
from tests.trace.golden import build
from tests.trace.test_rules import GOLDEN


def sums_over_a_weight(graph: ChannelGraph, node: NodeProto) -> bool:
    return any(tensor in set(node.input) for tensor, _ in graph.summed)


@cache
def summing() -> dict[str, list[tuple[ChannelGraph, NodeProto]]]:
    """Return the golden lines whose operator sums over an initializer, traced, by operator."""
    found: dict[str, list[tuple[ChannelGraph, NodeProto]]] = {}
    for golden in GOLDEN:
        graph = analyze(build(golden))
        for node in graph.proto.graph.node:
            if node.name == "op" and sums_over_a_weight(graph, node):
                found.setdefault(golden.operator, []).append((graph, node))
    return found


def macs(graph: ChannelGraph, node: NodeProto) -> int:
    found = multiply_accumulates(node, graph.shapes.shapes)
    return 0 if found is None else found[1](*(graph.shapes.shapes[name] for name in found[0]))


def test_whoever_sums_over_a_weight_says_so_everywhere() -> None:
    table = summing()
    assert len(table) >= 28
    for name, lines in table.items():
        card = cards()[name]
        assert card.contracts or card.attends, name
        assert all(macs(graph, node) > 0 for graph, node in lines), f"{name} counts no multiply-accumulates"
        assert (card.linear is None) == ("linear" in card.reasons), name
        assert differentiable(name) != ("gradient" in card.reasons), name


def test_contractions_are_those_that_sum_over_weights() -> None:
    assert {name for name, card in cards().items() if card.contracts} <= set(summing())


@pytest.mark.parametrize("name", sorted(name for name, card in cards().items() if card.trace))
def test_a_missing_gradient_has_a_reason(name: str) -> None:
    card = cards()[name]
    assert differentiable(name) != ("gradient" in card.reasons)


def test_a_reason_and_a_facet_exclude_each_other() -> None:
    for name, card in cards().items():
        assert (card.trace is None) == ("trace" in card.reasons), name
        assert not (card.linear and "linear" in card.reasons), name


def test_a_contraction_without_a_count_is_noticed() -> None:
    """The negative control: a card without factors has no multiply-accumulates."""
    graph, node = summing()["Conv"][0]
    assert macs(graph, node) > 0
    stranger = NodeProto()
    stranger.CopyFrom(node)
    stranger.op_type = "Mystery"
    assert macs(graph, stranger) == 0


@pytest.mark.parametrize(
    ("equation", "shape", "found"),
    [
        ("bik,ko->bio", (6, 4), True),
        ("bik,ok->bio", (4, 6), True),
        ("bik,ko->boi", (6, 4), False),
        ("bki,ko->bio", (6, 4), False),
        ("bik,k->bi", (6,), False),
    ],
)
def test_an_equation_is_a_linear_layer_if_it_is_a_product_of_the_last_axis(
    equation: str, shape: tuple[int, ...], found: bool
) -> None:
    net = Net()
    x = net.input((2, 5, 6) if "bik" in equation else (2, 6, 5))
    net.output(net.op("Einsum", x, net.weight(*shape), equation=equation))
    layers = find_layers(analyze(net.model()).proto)
    assert bool(layers) == found
    if layers:
        rng = np.random.default_rng(0)
        data, weight = rng.standard_normal((2, 5, 6)), rng.standard_normal(shape)
        expected = np.einsum(equation, data, weight)
        features, (values,) = layers[0].sample(data, [expected], 10, rng)
        assert np.allclose(features[:, 0] @ layers[0].matrix(weight)[0].T, values)
