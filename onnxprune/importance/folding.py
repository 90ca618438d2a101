"""Fold BatchNormalizations into the scores of the weights before them.

A BatchNormalization multiplies channel c of what a contraction computes by gamma[c] / sqrt(var[c] + epsilon), which is
the same as scaling the weights of that channel. Only the product matters: scaling the weights up and gamma down changes
neither outputs nor scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.model.file import weights
from onnxprune.model.graph import GraphIndex, attribute
from onnxprune.operators.card import card_of
from onnxprune.operators.node import Node
from onnxprune.trace.graph import ChannelGraph

Factors: TypeAlias = NDArray[np.float64]


def folded_scales(graph: ChannelGraph) -> Mapping[str, Factors]:
    """Return the factors that BatchNormalizations multiply the weights before them by, by the weights' names.

    Factors have shapes that broadcast to the weight's. A weight is left out if anything but one BatchNormalization
    reads the products with it.

    Raises:
        ModelError: a BatchNormalization's scale isn't finite, or a variance isn't positive (OP126).
    """
    folding = _Folding(graph)
    scales: dict[str, Factors] = {}
    for node in graph.proto.graph.node:
        complete = node.op_type == "BatchNormalization" and len(node.input) == 5
        if complete and not attribute(node, "training_mode", 0):
            scales.update(folding.fold(node))
    return scales


class _Folding:
    def __init__(self, graph: ChannelGraph) -> None:
        self._shapes = graph.shapes.shapes
        self._weights = weights(graph.proto)
        self._index = GraphIndex(graph.proto.graph)

    def fold(self, norm: NodeProto) -> dict[str, Factors]:
        """Return the factors of the weight before a BatchNormalization, by its name; empty if there is none."""
        product, gamma, _, _, variance = norm.input
        node = self._index.makers.get(product)
        linear = None if node is None else card_of(node.domain, node.op_type).linear
        if node is None or linear is None or self._index.uses[product] > 1:
            return {}
        if node.op_type in ("Einsum", "MatMul") and len(self._shapes.get(product, ())) != 2:
            return {}  # the second axis is normalized, and the weight makes the last
        source = self._source(node.input[1])
        if source is None or not {gamma, variance} <= self._weights.keys():
            return {}
        weight, axes = source
        shape = tuple(self._weights.shape(weight)[axis] for axis in axes)
        factors = self._factors(gamma, variance, attribute(norm, "epsilon", 1e-5))
        layer = linear(Node(node), shape)
        if layer is None:
            return {}
        channels = layer.outputs(shape)
        if factors.shape != (channels.max() + 1,):
            return {}
        return {weight: factors[channels].transpose(np.argsort(axes))}

    def _source(self, name: str) -> tuple[str, list[int]] | None:
        """Return the initializer a weight is made of, and for each axis of the weight the initializer's axis."""
        orders: list[list[int]] = []
        while self._index.uses[name] <= 1 and name not in self._weights:
            node = self._index.makers.get(name)
            if node is None or node.op_type not in ("Cast", "Identity", "Transpose"):
                return None
            if node.op_type == "Transpose":
                rank = len(self._shapes.get(name, ()))
                orders.append(list(attribute(node, "perm", range(rank)[::-1])))
            name = node.input[0]
        if self._index.uses[name] > 1:
            return None
        axes = list(range(len(self._weights.shape(name))))
        for order in reversed(orders):
            axes = [axes[i] for i in order]
        return name, axes

    def _factors(self, gamma: str, variance: str, epsilon: float) -> Factors:
        scale = self._weights[gamma].astype(np.float64)
        spread = self._weights[variance].astype(np.float64) + epsilon
        _require(np.isfinite(scale), gamma, "scale isn't finite")
        _require(np.isfinite(spread) & (spread > 0), variance, "variance isn't positive")
        return np.asarray(scale / np.sqrt(spread))


def _require(valid: NDArray[np.bool_], tensor: str, otherwise: str) -> None:
    if not valid.all():
        raise ModelError("OP126", f"a BatchNormalization's {otherwise}", where=f'initializer "{tensor}"')
