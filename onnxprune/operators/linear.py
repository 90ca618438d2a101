"""Contractions with weights as linear maps: the inputs that each output sums up, and the weight as a matrix.

A layer has groups; in each, every sampled output position is a row of features (input channels x kernel taps) times a
matrix of shape (features, outputs). Convolutions of any rank, stride, dilation and grouping, transposed ones, and
matrix products all have this form, which makes repair a plain least-squares problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels.values import Ids, Shape
from onnxprune.operators.node import Node
from onnxprune.operators.window import Window

Array = NDArray[Any]
Rows = NDArray[np.float64]

_SPARSE = 6  # how much longer it takes to gather a channel from an array with channels first than to move it


@dataclass(frozen=True, slots=True, eq=False)
class LinearLayer:
    """A node as the product of an activation with a weight, plus a bias. A subclass for each form.

    Attributes:
        node: the node.
        x: name of the activation.
        weight: name of the weight.
        bias: name of the bias, or None.
        groups: the number of groups of channels.
        kernel: the kernel's size along each spatial axis.
        transposed: whether the weight holds outputs first, where that isn't fixed by the operator.
    """

    node: NodeProto
    x: str
    weight: str
    bias: str | None
    groups: int = 1
    kernel: Shape = ()
    transposed: bool = False

    @property
    def channels_last(self) -> bool:
        """Whether channels are the last axis of input and output (matrix products) and not the second."""
        return False

    @property
    def y(self) -> str:
        """Name of the output."""
        return str(self.node.output[0])

    def features(self, shape: Sequence[int]) -> int:
        """Return the number of features of each group, for a weight of a given shape."""
        raise NotImplementedError

    def outputs(self, shape: Sequence[int]) -> Ids:
        """Return the output that each element of a weight contributes to; broadcasts to the weight's shape."""
        raise NotImplementedError

    def with_outputs(self, shape: Shape, outputs: int) -> Shape:
        """Return the shape of a weight of a layer without groups that has another number of outputs."""
        old = int(self.outputs(shape).max()) + 1
        axis = next(axis for axis, size in enumerate(self.outputs(shape).shape) if size == old)
        return (*shape[:axis], outputs, *shape[axis + 1 :])

    def matrix(self, weight: Array) -> Rows:
        """Return a weight as matrices of shape (groups, outputs, features)."""
        raise NotImplementedError

    def weight_of(self, matrix: Rows, like: Array) -> Array:
        """Return matrices as a weight with the shape and type of ``like``; the inverse of `matrix`."""
        raise NotImplementedError

    def sample(
        self, x: Array, targets: Sequence[Array], count: int, rng: np.random.Generator
    ) -> tuple[Rows, list[Rows]]:
        """Sample output positions, and return their features and target values.

        Args:
            x: the layer's input.
            targets: tensors of the output's shape, perhaps with other channels.
            count: the largest number of positions.
            rng: the random generator.

        Returns:
            Features, shape (positions, groups, features), and the values of each target, shape (positions, channels).
        """
        raise NotImplementedError


class ProductLayer(LinearLayer):
    """A matrix product of the last axis with a weight of two axes."""

    @property
    def channels_last(self) -> bool:
        """Return True."""
        return True

    @classmethod
    def of(cls, node: Node, shape: Shape) -> LinearLayer | None:
        """Return a Gemm or MatMul as a layer; None if it scales, transposes its input or stacks weights."""
        plain = {node.attr(name, 1.0) for name in ("alpha", "beta")} == {1.0}
        moves = any(node.attr(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
        if len(shape) != 2 or not plain or moves:
            return None
        x, weight = node.node.input[:2]
        bias = node.node.input[2] if node.has(2) else None
        return cls(node.node, x, weight, bias, transposed=bool(node.attr("transB", 0)))

    @classmethod
    def of_equation(cls, node: Node, shape: Shape) -> LinearLayer | None:
        """Return an Einsum as a layer; None unless it is a product of the last axis, such as ``bik,ko->bio``."""
        left, _, result = node.attr("equation").replace(" ", "").partition("->")
        terms = left.split(",")
        if len(terms) != 2 or len(shape) != 2 or len(terms[1]) != 2:
            return None
        lead, k = terms[0][:-1], terms[0][-1]
        for transposed, weight in enumerate((k + result[-1:], result[-1:] + k)):
            if terms[1] == weight and result[:-1] == lead and len(set(lead + weight)) == len(lead) + 2:
                return cls(node.node, node.node.input[0], node.node.input[1], None, transposed=bool(transposed))
        return None

    def features(self, shape: Sequence[int]) -> int:
        """Return the size of the axis that is summed over."""
        return shape[1] if self.transposed else shape[0]

    def outputs(self, shape: Sequence[int]) -> Ids:
        """Return the index along the axis of outputs."""
        return np.arange(shape[0])[:, None] if self.transposed else np.arange(shape[1])[None]

    def matrix(self, weight: Array) -> Rows:
        """Return the weight, outputs first."""
        w = np.asarray(weight, dtype=np.float64)
        return w[None] if self.transposed else w.T[None]

    def weight_of(self, matrix: Rows, like: Array) -> Array:
        """Return the weight in its own order."""
        return np.asarray(matrix[0] if self.transposed else matrix[0].T, dtype=like.dtype)

    def sample(
        self, x: Array, targets: Sequence[Array], count: int, rng: np.random.Generator
    ) -> tuple[Rows, list[Rows]]:
        """Sample rows."""
        rows = x.reshape(-1, x.shape[-1])
        index = rng.permutation(len(rows))[:count]
        values = [t.reshape(-1, t.shape[-1])[index].astype(np.float64) for t in targets]
        return rows[index].astype(np.float64)[:, None], values


class ConvolutionLayer(LinearLayer):
    """A convolution: the features of a position are the inputs under the kernel."""

    @classmethod
    def of(cls, node: Node, shape: Shape) -> LinearLayer | None:
        """Return a convolution as a layer."""
        bias = node.node.input[2] if node.has(2) else None
        x, weight = node.node.input[:2]
        return cls(node.node, x, weight, bias, int(node.attr("group", 1)), tuple(shape[2:]))

    def features(self, shape: Sequence[int]) -> int:
        """Return the input channels of a group times the taps."""
        return prod(shape[1:])

    def outputs(self, shape: Sequence[int]) -> Ids:
        """Return the index along the first axis."""
        return np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))

    def matrix(self, weight: Array) -> Rows:
        """Return the weight with its outputs split into groups."""
        w = np.asarray(weight, dtype=np.float64)
        return w.reshape(self.groups, w.shape[0] // self.groups, -1)

    def weight_of(self, matrix: Rows, like: Array) -> Array:
        """Return the weight with its groups joined."""
        return matrix.reshape(like.shape).astype(like.dtype)

    def sample(
        self, x: Array, targets: Sequence[Array], count: int, rng: np.random.Generator
    ) -> tuple[Rows, list[Rows]]:
        """Sample positions, and gather the inputs that each sums up."""
        spatial = targets[0].shape[2:]
        flat = rng.permutation(len(x) * prod(spatial))[:count]
        batch, *position = np.unravel_index(flat, (len(x), *spatial))
        taps = self._taps(x, batch, position, spatial)
        features = taps.reshape(len(flat), self.groups, -1, taps.shape[-1])
        values = [np.moveaxis(t, 1, -1)[(batch, *position)].astype(np.float64) for t in targets]
        return features.reshape(len(flat), self.groups, -1), values

    def _taps(self, x: Array, batch: Array, position: Sequence[Array], out: Shape) -> Rows:
        """Gather the inputs under the kernel at output positions, shape (positions, channels, taps)."""
        window = self._window(Node(self.node), x.shape[2:], out)
        last = np.moveaxis(x, 1, -1)
        if _SPARSE * prod(window.kernel) * len(batch) > last.size // last.shape[-1]:
            last = np.ascontiguousarray(last)  # makes the channels of a position contiguous, which pays for many
        taps = np.zeros((prod(window.kernel), len(batch), x.shape[1]), dtype=x.dtype)
        for k, tap in enumerate(product(*(range(n) for n in window.kernel))):
            inside = np.ones(len(batch), dtype=bool)
            where = []
            steps = zip(position, tap, x.shape[2:], window.strides, window.dilations, window.before, strict=True)
            for p, t, n, stride, dilation, pad in steps:
                at, exists = self._input_position(p, t * dilation, stride, pad)
                inside &= exists & (at >= 0) & (at < n)
                where.append(at)
            taps[k, inside] = last[(batch[inside], *(w[inside] for w in where))]
        return taps.transpose(1, 2, 0).astype(np.float64, order="C")

    def _window(self, node: Node, size: Shape, out: Shape) -> Window:
        return Window.of(node, size, self.kernel, out)

    def _input_position(self, p: Array, offset: int, stride: int, pad: int) -> tuple[Array, Array]:
        """Return the input position under a tap along one axis, and whether it exists."""
        return p * stride + offset - pad, np.ones(len(p), dtype=bool)


class TransposedLayer(ConvolutionLayer):
    """A transposed convolution: its weight holds input channels first."""

    def features(self, shape: Sequence[int]) -> int:
        """Return the input channels of a group times the taps."""
        return shape[0] // self.groups * prod(shape[2:])

    def outputs(self, shape: Sequence[int]) -> Ids:
        """Return the index along the second axis, counted through all groups."""
        inputs, outputs = shape[:2]
        group = np.arange(inputs) // max(1, inputs // max(1, self.groups))
        channels = group[:, None] * outputs + np.arange(outputs)
        return channels.reshape(inputs, outputs, *[1] * (len(shape) - 2))

    def matrix(self, weight: Array) -> Rows:
        """Return the weight with its inputs split into groups, outputs first."""
        w = np.asarray(weight, dtype=np.float64)
        w = w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], -1).transpose(0, 2, 1, 3)
        return w.reshape(self.groups, w.shape[1], -1)

    def weight_of(self, matrix: Rows, like: Array) -> Array:
        """Return the weight with inputs first again."""
        w = matrix.reshape(self.groups, like.shape[1], like.shape[0] // self.groups, -1).transpose(0, 2, 1, 3)
        return w.reshape(like.shape).astype(like.dtype)

    def _window(self, node: Node, size: Shape, out: Shape) -> Window:
        return Window.of_transposed(node, size, self.kernel, out)

    def _input_position(self, p: Array, offset: int, stride: int, pad: int) -> tuple[Array, Array]:
        at, rest = np.divmod(p + pad - offset, stride)
        return at, rest == 0
