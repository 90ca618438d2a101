"""The axes of the weight that a Conv, ConvTranspose, Gemm or MatMul sums over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from onnx import NodeProto, helper


@dataclass(frozen=True, slots=True)
class Contraction:
    """A node that sums products of data and a constant weight."""

    data: str
    weight: str
    shape: tuple[int, ...]
    """Shape of the weight, as the node reads it."""
    axes: tuple[int, ...]
    """Axes of the weight that are summed over; the others index the outputs."""
    share: float = 1.0
    """How much of the weight along `axes` reaches one output: a transposed convolution spreads it
    over groups and strides."""

    @property
    def terms(self) -> float:
        """The number of products summed in one entry of the output."""
        return prod(self.shape[axis] for axis in self.axes) * self.share


def contraction(node: NodeProto, constant_shapes: Mapping[str, tuple[int, ...]]) -> Contraction | None:
    """Return a node as a contraction; None if it is none, or multiplies two activations.

    `constant_shapes` has the shapes of all constant tensors by name.
    """
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return None
    weights = [index for index in (0, 1) if node.input[index] in constant_shapes]
    if len(weights) != 1:
        return None
    (index,) = weights
    data, weight = node.input[1 - index], node.input[index]
    shape = constant_shapes[weight]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Conv":
            return Contraction(data, weight, shape, tuple(range(1, len(shape))))
        case "ConvTranspose":
            spread = int(attributes.get("group", 1)) * prod(attributes.get("strides", (1,)))
            return Contraction(data, weight, shape, (0, *range(2, len(shape))), 1 / spread)
        case "Gemm":
            transposed = int(attributes.get("transB" if index else "transA", 0))
            return Contraction(data, weight, shape, ((1 - index) ^ transposed,))
        case _:
            axis = max(0, len(shape) - 2) if index else len(shape) - 1
            return Contraction(data, weight, shape, (axis,))
