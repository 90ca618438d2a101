"""The regression of one layer of a pruned network: its target, its parameters, and where its intercepts go.

The target of a layer is usually its output in the original. Where its output is added to another branch, only the sum
matters: the target of the last layer is the original's sum minus the other branch in the pruned network, so that the
layer makes up for the other's error as well.

A layer without a bias may still take an intercept in the node after it: in the mean of a normalization, or in a
constant that is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.values import Shape
from onnxprune.model.graph import GraphIndex, attribute
from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.recover.layers import LinearLayer
from onnxprune.recover.lstsq import Rows
from onnxprune.recover.pairs import PairedLayers

Vector = NDArray[np.float64]

# A normalization is inverted only if its smallest scale is at least this share of its largest.
_SMALLEST = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class RegressionTarget:
    """A layer's target: ``(original[tensor] - pruned[other] - shift) / scale``.

    Attributes:
        tensor: a tensor of the original.
        other: a tensor of the pruned network, or None.
        scale: per channel of the layer's output, shape (channels,) or ().
        shift: likewise.
    """

    tensor: str
    other: str | None
    scale: Vector
    shift: Vector


class LayerIndex(GraphIndex):
    """Index of a pruned network with its layers: which of them a tensor depends on, and which constants are added."""

    def __init__(self, model: ModelProto, layers: Mapping[str, int], shapes: Mapping[str, Shape]) -> None:
        """Index a model.

        Args:
            model: the pruned network.
            layers: its layers' numbers by node name, in topological order.
            shapes: shapes of the original's tensors, which show what broadcasts.
        """
        super().__init__(model.graph)
        self.weights = Weights(model)
        self.shapes = shapes
        self._latest: dict[str, int] = {}
        for node in self.nodes:
            latest = max((self._latest.get(n, -1) for n in node.input), default=-1)
            self._latest.update(dict.fromkeys(node.output, max(latest, layers.get(node.name, -1))))

    def same_shape(self, *tensors: str) -> bool:
        """Whether tensors are known to have the same shape, so that none is broadcast."""
        shapes = [self.shapes.get(t) for t in tensors]
        return shapes[0] is not None and all(s == shapes[0] for s in shapes)

    def per_channel(self, tensor: str, layer: LinearLayer) -> Vector | None:
        """Return a constant that is added to a layer's output as a vector over channels, or None if it isn't one."""
        if tensor not in self.weights:
            return None
        rank = len(self.shapes.get(layer.y, ()))
        axis = rank - 1 if layer.channels_last else 1
        shape = self.weights.shape(tensor)
        full = (1,) * (rank - len(shape)) + shape
        if len(full) != rank or any(n != 1 for a, n in enumerate(full) if a != axis):
            return None
        return np.asarray(self.weights[tensor], dtype=np.float64).ravel()

    def are_vectors(self, tensors: Iterable[str]) -> bool:
        """Whether tensors are initializers with a single axis."""
        return all(t in self.weights and len(self.weights.shape(t)) == 1 for t in tensors)

    def latest_layer(self, tensor: str) -> int:
        """Return the number of the last layer that a tensor depends on, -1 for none."""
        return self._latest.get(tensor, -1)


def scale_behind(layer: LinearLayer, index: LayerIndex) -> Vector:
    """Return the factor that a normalization behind a layer multiplies each output by, shape (channels,) or ()."""
    node = index.only_reader(layer.y)
    if node is None or node.op_type != "BatchNormalization" or not index.are_vectors(node.input[1:5]):
        return np.ones(())
    gamma, _, _, variance = (np.asarray(index.weights[n], dtype=np.float64) for n in node.input[1:5])
    return np.asarray(gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5)))


def own_output(layer: LinearLayer) -> RegressionTarget:
    """Return a layer's output in the original as its target."""
    return RegressionTarget(layer.y, None, np.ones(()), np.zeros(()))


def target_of(layer: LinearLayer, number: int, index: LayerIndex) -> RegressionTarget:
    """Return a layer's target.

    Args:
        layer: the layer.
        number: its number among all layers.
        index: the pruned network.
    """
    scale, shift = np.ones(()), np.zeros(())
    tensor, node = layer.y, index.only_reader(layer.y)
    while node is not None:
        if node.op_type == "BatchNormalization" and index.are_vectors(node.input[1:5]):
            gamma, beta, mean, variance = (np.asarray(index.weights[n], dtype=np.float64) for n in node.input[1:5])
            a = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
            scale, shift = scale * a, shift * a + beta - mean * a
        elif node.op_type == "Add":
            other = next((n for n in node.input if n != tensor), tensor)
            constant = index.per_channel(other, layer)
            if constant is None:
                total = node.output[0]
                ready = other != tensor and index.latest_layer(other) < number
                even = np.abs(scale).min() > _SMALLEST * np.abs(scale).max()
                if ready and even and index.same_shape(layer.y, other, total):
                    return RegressionTarget(total, other, scale, shift)
                break
            shift = shift + constant
        elif node.op_type != "Identity":
            break
        tensor, node = node.output[0], index.only_reader(node.output[0])
    return own_output(layer)


@dataclass(frozen=True, slots=True)
class InterceptPlace:
    """The initializer that holds a layer's intercepts.

    Attributes:
        name: an initializer with one element for each output.
        sign: 1 if the element is added to the output, -1 if it is subtracted.
    """

    name: str
    sign: float


def intercept_place(layer: LinearLayer, index: LayerIndex) -> InterceptPlace | None:
    """Return the initializer that can hold a layer's intercepts, or None if there is none."""
    weights = index.weights
    follower = index.only_reader(layer.y)
    if layer.bias is not None:
        place = InterceptPlace(layer.bias, 1.0)
    elif follower is not None and follower.op_type == "BatchNormalization":
        place = InterceptPlace(follower.input[3], -1.0)
    elif follower is not None and follower.op_type == "Add":
        place = InterceptPlace(next((n for n in follower.input if index.per_channel(n, layer) is not None), ""), 1.0)
    else:
        return None
    outputs = parameters(layer, weights).shape[:2]
    own = place.name in weights and index.uses[place.name] == 1
    return place if own and weights[place.name].size == outputs[0] * outputs[1] else None


def parameters(layer: LinearLayer, weights: Weights) -> Rows:
    """Return a layer's weights with its bias as a last column, shape (groups, outputs, features + 1)."""
    matrix = layer.product(weights) if isinstance(layer, PairedLayers) else layer.matrix(weights[layer.weight])
    intercept = np.zeros(matrix.shape[:2])
    if layer.bias is not None:
        intercept = np.asarray(weights[layer.bias], dtype=np.float64).reshape(intercept.shape)
    return np.concatenate([matrix, intercept[..., None]], axis=2)


def set_parameters(layer: LinearLayer, weights: Weights, place: InterceptPlace | None, new: Rows) -> None:
    """Write a layer's weights and intercepts into the model.

    Args:
        layer: the layer.
        weights: the model's initializers.
        place: where the intercepts go; if None, they aren't written.
        new: the values, as `parameters` returns them.
    """
    change = new[..., -1] - parameters(layer, weights)[..., -1]
    if isinstance(layer, PairedLayers):
        layer.store(weights, new[..., :-1])
    else:
        set_tensor(weights.tensor(layer.weight), layer.weight_of(new[..., :-1], weights[layer.weight]))
    if place is not None:
        old = weights[place.name]
        shifted = old.astype(np.float64) + place.sign * change.reshape(old.shape)
        set_tensor(weights.tensor(place.name), shifted.astype(old.dtype))
