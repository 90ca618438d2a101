"""The layers of a model that are linear maps with weights of their own, see `onnxprune.operators.linear`."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from onnxprune.model.bodies import in_body
from onnxprune.model.graph import GraphIndex
from onnxprune.model.tensors import Weights
from onnxprune.operators.card import card_of
from onnxprune.operators.linear import LinearLayer
from onnxprune.operators.node import Node

__all__ = ["LinearLayer", "find_layers"]


def find_layers(model: ModelProto) -> list[LinearLayer]:
    """Return the layers of a model whose weights are initializers of their own, in topological order.

    Those in bodies of If are left out: on some inputs they don't run.
    """
    weights = Weights(model)
    uses = GraphIndex(model.graph).uses
    layers = (_layer(node, weights) for node in model.graph.node if not in_body(node))
    return [layer for layer in layers if layer is not None and uses[layer.weight] == 1]


def _layer(node: NodeProto, weights: Weights) -> LinearLayer | None:
    """Return a node as a layer, or None if it isn't the product of an activation and a weight, plus a bias."""
    linear = card_of(node.domain, node.op_type).linear
    if linear is None or node.input[0] in weights or node.input[1] not in weights:
        return None
    name = node.input[1]
    if weights.dtype(name).kind != "f":
        return None
    shape = weights.shape(name)
    layer = linear(Node(node), shape)
    if layer is None or layer.bias is None:
        return layer
    outputs = int(layer.outputs(shape).max()) + 1
    fits = layer.bias in weights and weights.shape(layer.bias) in ((outputs,), (1, outputs))
    return layer if fits else None
