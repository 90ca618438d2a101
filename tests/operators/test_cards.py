"""The facets of each card agree, or have reasons why they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import cast

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from onnxprune.autodiff.backward import gradients
from onnxprune.autodiff.forward import forward
from onnxprune.autodiff.prepare import differentiable
from onnxprune.channels.values import Shape
from onnxprune.operators.card import Card, cards, describe, gradient, traces
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.operators.linear import ProductLayer
from onnxprune.operators.traced import TraceNode
from onnxprune.recover.layers import find_layers
from onnxprune.report.operators import operators
from onnxprune.trace import ChannelGraph
from onnxprune.trace.attention import attention_nodes
from onnxprune.train.trainable import trainable
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


PRODUCT = "example:BiasedProduct"


@pytest.fixture
def product() -> Iterator[None]:
    """Write the card of a made-up contraction, x W + b, and remove it afterwards."""
    describe(PRODUCT, factors=(0, 1), weights=(1, 2), linear=ProductLayer.of)

    @traces(PRODUCT)
    def product(op: TraceNode) -> None:
        """Rows times a matrix, plus a bias."""
        op.align("*b m k, *b k n, n -> *b m n")

    gradient(PRODUCT)(lambda op, dy: dy @ op.x(1).mT)
    gradient(PRODUCT, of=1)(lambda op, dy: op.x().mT @ dy)
    gradient(PRODUCT, of=2)(lambda op, dy: dy)
    yield
    del cast(dict[str, Card], cards())[PRODUCT]


def typed(net: Net) -> ModelProto:
    """Return the model with the types of all tensors, which onnx can't infer behind a made-up operator."""
    model = net.model(check=False)
    made = [name for node in net.nodes for name in node.output]
    model.graph.value_info.extend(helper.make_value_info(name, net.types[name]) for name in made)
    return model


def layers_around_a_product() -> ModelProto:
    """Return MatMul, the made-up operator and MatMul, whose channels number 8, 4 and 3."""
    net = Net()
    x = net.op("MatMul", net.input((2, 5, 6)), net.weight(6, 8, name="before"))
    weights = net.weight(8, 4, name="weight"), net.weight(4, name="bias")
    (x,) = net.ops(PRODUCT, x, *weights, count=1, shapes=[(2, 5, 4)], name="product")
    net.output(net.op("MatMul", x, net.weight(4, 3, name="after")))
    return typed(net)


def scores_by_a_product() -> ModelProto:
    """Return a product of two activations, behind one with a weight."""
    net = Net()
    x, bias = net.input((5, 6)), net.weight(5)
    (queries,) = net.ops(PRODUCT, x, net.weight(6, 4), net.weight(4), count=1, shapes=[(5, 4)], name="project")
    keys = net.op("Transpose", net.op("MatMul", x, net.weight(6, 4)), name="keys")
    net.output(net.ops(PRODUCT, queries, keys, bias, count=1, shapes=[(5, 5)], name="scores")[0])
    return typed(net)


def attended(model: ModelProto) -> set[str]:
    graph = analyze(model).proto.graph
    return {graph.node[i].name for i in attention_nodes(graph)}


def test_one_card_is_enough_to_add_a_contraction(product: None) -> None:
    graph = analyze(layers_around_a_product())
    widths = {group.name: (len(group.units), {tensor for tensor, _ in group.slots}) for group in graph.groups}
    assert widths == {"matmul0": (8, {"before", "weight"}), "product": (4, {"weight", "bias", "after"})}
    node = next(n for n in graph.proto.graph.node if n.name == "product")
    assert macs(graph, node) == 2 * 5 * 8 * 4
    assert ("weight", 0) in graph.summed and ("weight", 1) not in graph.summed
    assert set(trainable(graph.proto)) == {"before", "weight", "bias", "after"}
    assert "weight" in {layer.weight for layer in find_layers(graph.proto)}
    assert attended(scores_by_a_product()) == {"keys", "scores"}
    (row,) = [o for o in operators() if o.name == PRODUCT]
    assert (row.state, row.note) == ("rule", "Rows times a matrix, plus a bias.")
    assert row.counted and row.trained and row.repaired


def test_its_gradients_are_differentiated(product: None) -> None:
    step = forward(layers_around_a_product(), {"input0": (2, 5, 6)}, ["weight", "bias"])
    loss = next(iter(step.outputs.values())).sum()
    found = gradients(step.tape, loss, list(step.weights.values()))
    assert [t.shape for t in found] == [(8, 4), (4,)]


def test_without_its_card_the_operator_is_unknown() -> None:
    """The negative control."""
    graph = analyze(layers_around_a_product())
    assert not graph.groups
    assert "OP203" in {pin.code for _, pin in graph.reasons()}
    node = next(n for n in graph.proto.graph.node if n.name == "product")
    assert macs(graph, node) == 0
    assert set(trainable(graph.proto)) == {"before", "after"}
    assert attended(scores_by_a_product()) == set()
    assert PRODUCT not in {o.name for o in operators()}


LEFT_ALONE = [
    (
        "DeformConv",
        {"offset_group": 2},
        {"x": (1, 4, 5, 5), "w": (6, 4, 3, 3), "o": (1, 36, 3, 3)},
        (1, 6, 3, 3),
        6 * 9 * 36,
    ),
    ("com.microsoft:FusedMatMul", {"transBatchA": 1}, {"x": (3, 2, 4), "w": (2, 4, 5)}, (2, 3, 5), 30 * 4),
]


@pytest.mark.parametrize(("operator", "attributes", "inputs", "output", "expected"), LEFT_ALONE)
def test_forms_that_are_left_alone_are_counted(
    operator: str, attributes: dict[str, int], inputs: dict[str, Shape], output: Shape, expected: int
) -> None:
    domain, _, op_type = operator.rpartition(":")
    node = helper.make_node(op_type, list(inputs), ["y"], domain=domain, **attributes)
    found = multiply_accumulates(node, shapes := {**inputs, "y": output})
    assert found is not None
    assert found[1](*(shapes[name] for name in found[0])) == expected
    assert found[1](*((0,) * len(shapes[name]) for name in found[0])) == 0
