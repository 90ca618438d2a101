"""Contractions with weights as linear maps: which inputs each output sums up, and the weight as a matrix.

A layer has groups; in each, every sampled output position is a row of features (input channels x kernel taps) times a
matrix of shape (features, outputs). Convolutions of any rank, stride, dilation and grouping, transposed ones, and
matrix products all take this form, so that everything after it is plain least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.helper import get_attribute_value, make_attribute

from onnxprune.model.bodies import in_body
from onnxprune.model.graph import count_uses
from onnxprune.model.tensors import Weights

Array = NDArray[Any]
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LinearLayer:
    """A contraction of an activation with an initializer.

    Attributes:
        node: the node.
        weight: name of its weight.
        bias: name of its bias, or None.
        groups: into how many groups channels fall.
        channels_last: whether channels are the last axis of input and output (matrix products) and not the second.
    """

    node: NodeProto
    weight: str
    bias: str | None
    groups: int
    channels_last: bool

    @property
    def x(self) -> str:
        """Name of the input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """Name of the output."""
        return str(self.node.output[0])

    def features(self, shape: Sequence[int]) -> int:
        """Return how many features each group has, for a weight of some shape."""
        if self.channels_last:
            return shape[1] if self._transposed else shape[0]
        inputs = shape[0] // self.groups if self.node.op_type == "ConvTranspose" else shape[1]
        return inputs * prod(shape[2:])

    def matrix(self, weight: Array) -> Rows:
        """Return a weight as matrices of shape (groups, outputs, features)."""
        w = np.asarray(weight, dtype=np.float64)
        if self.node.op_type == "ConvTranspose":
            w = w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], -1).transpose(0, 2, 1, 3)
        elif self.channels_last:
            w = w[None] if self._transposed else w.T[None]
        else:
            w = w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], -1)
        return w.reshape(self.groups, w.shape[1], -1)

    def weight_of(self, matrix: Rows, like: Array) -> Array:
        """Return matrices as a weight of the shape and type of another; the inverse of `matrix`."""
        if self.node.op_type == "ConvTranspose":
            inputs = like.shape[0] // self.groups
            w = matrix.reshape(self.groups, like.shape[1], inputs, -1).transpose(0, 2, 1, 3)
        elif self.channels_last:
            w = matrix[0] if self._transposed else matrix[0].T
        else:
            w = matrix
        return w.reshape(like.shape).astype(like.dtype)

    def sample(
        self, x: Array, targets: Sequence[Array], count: int, rng: np.random.Generator
    ) -> tuple[Rows, list[Rows]]:
        """Draw output positions and return what they are made of and what they should be.

        Args:
            x: the layer's input.
            targets: tensors of the output's shape, perhaps with other channels.
            count: how many positions to draw at most.
            rng: the draw.

        Returns:
            Features of shape (positions, groups, features), and of each target the values, (positions, channels).
        """
        if self.channels_last:
            rows = x.reshape(-1, x.shape[-1])
            index = rng.permutation(len(rows))[:count]
            return rows[index].astype(np.float64)[:, None], [
                t.reshape(-1, t.shape[-1])[index].astype(np.float64) for t in targets
            ]
        spatial = targets[0].shape[2:]
        flat = rng.permutation(len(x) * prod(spatial))[:count]
        batch, *position = np.unravel_index(flat, (len(x), *spatial))
        taps = self._taps(x, batch, position)
        features = taps.reshape(len(flat), self.groups, -1, taps.shape[-1])
        values = [np.moveaxis(t, 1, -1)[(batch, *position)].astype(np.float64) for t in targets]
        return features.reshape(len(flat), self.groups, -1), values

    def _taps(self, x: Array, batch: Array, position: Sequence[Array]) -> Rows:
        """Gather the inputs under the kernel at output positions, shape (positions, channels, taps)."""
        geometry = _geometry(self.node, x.shape[2:], self._kernel)
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))  # all channels of a position are next to each other
        taps = np.zeros((prod(self._kernel), len(batch), x.shape[1]), dtype=x.dtype)
        for k, tap in enumerate(product(*(range(n) for n in self._kernel))):
            inside = np.ones(len(batch), dtype=bool)
            where = []
            for p, t, n, (stride, dilation, pad) in zip(position, tap, x.shape[2:], geometry, strict=True):
                if self.node.op_type == "ConvTranspose":
                    at, rest = np.divmod(p + pad - t * dilation, stride)
                    inside &= rest == 0
                else:
                    at = p * stride + t * dilation - pad
                inside &= (at >= 0) & (at < n)
                where.append(at)
            taps[k, inside] = last[(batch[inside], *(w[inside] for w in where))]
        return taps.transpose(1, 2, 0).astype(np.float64, order="C")

    @property
    def _kernel(self) -> tuple[int, ...]:
        return tuple(_attributes(self.node)["kernel_shape"])

    @property
    def _transposed(self) -> bool:
        return bool(_attributes(self.node).get("transB", 0))


def find_layers(model: ModelProto) -> list[LinearLayer]:
    """Return the layers of a model whose weights are initializers of their own, in topological order.

    Those in bodies of If are left out: on some inputs they don't run.
    """
    weights = Weights(model)
    uses = count_uses(model.graph)
    layers = (_layer(node, weights) for node in model.graph.node if not in_body(node))
    return [layer for layer in layers if layer is not None and uses[layer.weight] == 1]


def _layer(source: NodeProto, weights: Weights) -> LinearLayer | None:
    """Return a node as a layer, or None if it isn't the product of an activation and a weight, plus a bias."""
    if source.domain not in ("", "ai.onnx") or source.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    x, weight = source.input[:2]
    if x in weights or weight not in weights or weights.dtype(weight).kind != "f":
        return None
    node = NodeProto()
    node.CopyFrom(source)
    attributes, shape = _attributes(node), weights.shape(weight)
    convolution = node.op_type.startswith("Conv")
    if convolution and "kernel_shape" not in attributes:
        node.attribute.append(make_attribute("kernel_shape", list(shape[2:])))
    groups = attributes.get("group", 1) if convolution else 1
    if node.op_type == "Gemm":
        outputs = shape[0] if attributes.get("transB", 0) else shape[-1]
    else:
        outputs = shape[0] if node.op_type == "Conv" else shape[1] * groups if convolution else shape[-1]
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    plain = convolution or (
        len(shape) == 2 and not attributes.get("transA", 0) and {attributes.get(n, 1) for n in ("alpha", "beta")} == {1}
    )
    if not plain or (
        bias is not None and (bias not in weights or weights.shape(bias) not in ((outputs,), (1, outputs)))
    ):
        return None
    return LinearLayer(node, weight, bias, groups, channels_last=not convolution)


def _geometry(node: NodeProto, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return stride, dilation and padding in front, for each spatial axis."""
    attributes = _attributes(node)
    rank = len(kernel)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)[:rank]
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    same = auto in ("SAME_UPPER", "SAME_LOWER")
    extents = [dilation * (k - 1) + 1 for dilation, k in zip(dilations, kernel, strict=True)]
    if node.op_type == "ConvTranspose" and (same or "output_shape" in attributes):
        out = attributes.get("output_shape", [n * stride for n, stride in zip(size, strides, strict=True)])[-rank:]
        extra = attributes.get("output_padding", [0] * rank)
        totals = [
            max((n - 1) * stride + e + extent - o, 0)
            for n, stride, e, extent, o in zip(size, strides, extra, extents, out, strict=True)
        ]
        pads = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    elif same:
        totals = [
            max((-(-n // stride) - 1) * stride + extent - n, 0)
            for n, stride, extent in zip(size, strides, extents, strict=True)
        ]
        pads = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    elif auto == "VALID":
        pads = [0] * rank
    return list(zip(strides, dilations, pads, strict=True))


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    return {a.name: get_attribute_value(a) for a in node.attribute}
