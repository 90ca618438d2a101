"""The layers of a model that are linear maps with weights of their own, see `onnxprune.operators.linear`."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from onnxprune.model.bodies import in_body, is_body_input
from onnxprune.model.graph import GraphIndex
from onnxprune.model.tensors import Weights
from onnxprune.operators.card import Card, card_of
from onnxprune.operators.linear import LinearLayer
from onnxprune.operators.node import Node

__all__ = ["LeftOut", "LinearLayer", "find_layers", "left_out"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A layer whose weights a method can't change.

    Attributes:
        node: the layer's name.
        operator: its operator.
        reason: why.
    """

    node: str
    operator: str
    reason: str


def find_layers(model: ModelProto) -> list[LinearLayer]:
    """Return the layers of a model whose weights are initializers of their own, in topological order."""
    return [layer for _, layer in _layers(model) if isinstance(layer, LinearLayer)]


def left_out(model: ModelProto, among: Container[str]) -> tuple[LeftOut, ...]:
    """Return the other layers with weights that read some tensors, in topological order."""
    return tuple(
        LeftOut(node.name, node.op_type, layer)
        for node, layer in _layers(model)
        if isinstance(layer, str) and any(name in among for name in node.input)
    )


def _layers(model: ModelProto) -> Iterator[tuple[NodeProto, LinearLayer | str]]:
    """Yield the nodes that sum over weights, each as a layer or with the reason why it is none."""
    weights, index = Weights(model), GraphIndex(model.graph)
    computed = set(weights)  # what depends on weights alone
    for node in model.graph.node:
        given = [name for name in node.input if name]
        if given and computed.issuperset(given) and not is_body_input(node):
            computed.update(filter(None, node.output))
            continue
        card = card_of(node.domain, node.op_type)
        factors = [node.input[i] for i in card.factors if i < len(node.input) and node.input[i]]
        if not computed.isdisjoint(factors):
            yield node, _layer(node, card, weights, index)


def _layer(node: NodeProto, card: Card, weights: Weights, index: GraphIndex) -> LinearLayer | str:
    """Return a node as a layer, or why it isn't the product of an activation and a weight, plus a bias."""
    if in_body(node):
        return "it is in a body, which may run many times or not at all"
    if card.linear is None:
        return card.reasons.get("linear", "no rule writes its weights as a matrix")
    if node.input[1] not in weights:
        maker = index.makers.get(node.input[1])
        quantized = maker is not None and maker.op_type == "DequantizeLinear"
        return "its weights are integers" if quantized else "its weight is its first input, or computed by other nodes"
    name = node.input[1]
    if weights.dtype(name).kind != "f":
        return "its weights are integers"
    if index.uses[name] > 1:
        return "other layers share its weight"
    shape = weights.shape(name)
    layer = card.linear(Node(node), shape)
    if layer is None:
        return "it isn't a plain product of the input's last axis and a weight of two axes"
    if layer.bias is None:
        return layer
    outputs = int(layer.outputs(shape).max()) + 1
    fits = layer.bias in weights and weights.shape(layer.bias) in ((outputs,), (1, outputs))
    return layer if fits else "its bias isn't one number for each output"
