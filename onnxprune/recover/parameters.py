"""Read a layer's weights and intercepts as one matrix, and write them back into the model.

A layer without a bias may still take an intercept in the node after it: in the mean of a normalization, or in a
constant that is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.recover.layers import LinearLayer
from onnxprune.recover.lstsq import Rows
from onnxprune.recover.targets import LayerIndex


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
    outputs = layer.matrix(weights[layer.weight]).shape[:2]
    own = place.name in weights and index.uses[place.name] == 1
    return place if own and weights[place.name].size == outputs[0] * outputs[1] else None


def parameters(layer: LinearLayer, weights: Weights) -> Rows:
    """Return a layer's weights with its bias as a last column, shape (groups, outputs, features + 1)."""
    matrix = layer.matrix(weights[layer.weight])
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
    set_tensor(weights.tensor(layer.weight), layer.weight_of(new[..., :-1], weights[layer.weight]))
    if place is not None:
        old = weights[place.name]
        shifted = old.astype(np.float64) + place.sign * change.reshape(old.shape)
        set_tensor(weights.tensor(place.name), shifted.astype(old.dtype))
