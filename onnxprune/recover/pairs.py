"""Two layers with nothing but few channels between, solved as one and split again.

Neither of the two has a target of its own: the original has one layer in their place. Its regression is one with
weights of limited rank: the unrestricted solution is projected on the directions in which its outputs vary most
(A. Izenman, "Reduced-rank regression for the multivariate linear model", Journal of Multivariate Analysis, 1975).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto

from onnxprune.channels.values import Ids
from onnxprune.model.graph import GraphIndex
from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.operators.linear import Array, LinearLayer, Rows
from onnxprune.recover.lstsq import Evidence

_SMALLEST = 1e-3  # weight of an output, relative to the largest


@dataclass(frozen=True, slots=True, eq=False)
class PairedLayers(LinearLayer):
    """Two layers as one: the window and input of the first, the outputs and bias of the second.

    Attributes:
        first: the layer in front.
        second: the layer behind.
    """

    first: LinearLayer = field(kw_only=True)
    second: LinearLayer = field(kw_only=True)

    @classmethod
    def of(cls, first: LinearLayer, second: LinearLayer) -> PairedLayers:
        """Return two layers as one."""
        known = second.node, first.x, first.weight, second.bias, 1, first.kernel
        return cls(*known, first=first, second=second)

    @property
    def channels_last(self) -> bool:
        """Whether channels are the last axis."""
        return self.second.channels_last

    def features(self, shape: Sequence[int]) -> int:
        """Return the features of the first layer, for a weight of its."""
        return self.first.features(shape)

    def outputs(self, shape: Sequence[int]) -> Ids:
        """Return the outputs of the first layer, for a weight of its."""
        return self.first.outputs(shape)

    def sample(
        self, x: Array, targets: Sequence[Array], count: int, rng: np.random.Generator
    ) -> tuple[Rows, list[Rows]]:
        """Sample output positions: the second layer reads a single one."""
        return self.first.sample(x, targets, count, rng)

    def rank(self, weights: Weights) -> int:
        """Return the number of channels between."""
        return int(self.second.features(weights.shape(self.second.weight)))

    def product(self, weights: Weights) -> Rows:
        """Return the weights of both as one matrix, shape (1, outputs, features)."""
        first, second = (layer.matrix(weights[layer.weight]) for layer in (self.first, self.second))
        return np.asarray(second @ first)

    def store(self, weights: Weights, product: Rows) -> None:
        """Write a matrix of this rank as the weights of both."""
        left, right = split(product[0], self.rank(weights))
        for layer, matrix in ((self.first, right), (self.second, left)):
            set_tensor(weights.tensor(layer.weight), layer.weight_of(matrix[None], weights[layer.weight]))


def paired(layers: Iterable[LinearLayer], model: ModelProto, known: Container[str]) -> list[LinearLayer]:
    """Return layers, two of them as one where the original has nothing like what is between.

    Args:
        layers: the layers of a model, in topological order.
        model: the model.
        known: the tensors that the original computes as well.
    """
    index, found = GraphIndex(model.graph), dict[str, LinearLayer]()
    for layer in layers:
        first = found.get(layer.x)
        reader = index.only_reader(layer.x)
        point = all(n == 1 for n in layer.kernel) and layer.groups == 1
        if first is not None and layer.x not in known and reader is not None and first.bias is None and point:
            del found[layer.x]
            found[layer.y] = PairedLayers.of(first, layer)
        else:
            found[layer.y] = layer
    return list(found.values())


def split(matrix: Rows, rank: int) -> tuple[Rows, Rows]:
    """Return the two matrices of a rank whose product is nearest to a matrix.

    Args:
        matrix: shape (outputs, features).
        rank: the number of channels between.

    Returns:
        Matrices of shape (outputs, rank) and (rank, features).
    """
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    roots = np.sqrt(sizes[:rank])
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def of_rank(full: Rows, rank: int, moments: Evidence, scale: Rows | float = 1.0) -> Rows:
    """Return the weights of a rank whose outputs are nearest to those of others.

    Args:
        full: the other weights with intercepts, shape (1, outputs, features + 1).
        rank: the rank.
        moments: of samples. If the layer can take no intercept, outputs aren't centered.
        scale: what differences of each output count, shape (outputs,).
    """
    weight, scale = full[0, :, :-1], np.broadcast_to(scale, full.shape[1])
    scale = np.maximum(np.abs(scale), _SMALLEST * (float(np.abs(scale).max()) or 1.0))
    covariance = moments.covariance(full)[0]
    _, directions = np.linalg.eigh(covariance * scale[:, None] * scale)
    top = directions[:, -rank:]
    near = (top @ (top.T @ (weight * scale[:, None]))) / scale[:, None]
    mean = moments.means()[0][0, :-1]
    centered = moments.means()[0][0, -1]  # 1, or 0 without an intercept
    intercept = full[0, :, -1] + centered * (weight - near) @ mean
    return np.concatenate([near, intercept[:, None]], axis=1)[None]
