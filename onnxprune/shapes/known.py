"""What is known of a graph's tensors while it is being found out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, TypeProto
from onnx.helper import make_tensor_type_proto
from onnx.numpy_helper import from_array, to_array

Shape = tuple[int, ...]

SMALL = 4096  # values of more elements are weights or data, not shape arithmetic


@dataclass(slots=True)
class Known:
    """Types, shapes and values of tensors, so far.

    Attributes:
        types: Every tensor with a known type, with whatever part of its shape is known.
        shapes: Those whose shape is known in full.
        values: Those whose value is known.
        constant: Those that depend on no input, not even on an input's size.
    """

    types: dict[str, TypeProto] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    _tensors: dict[str, TensorProto] = field(default_factory=dict)  # the values, as onnx wants them

    def copy(self) -> Known:
        """Return a copy that can learn more on its own."""
        return Known(
            types=self.types.copy(),
            shapes=self.shapes.copy(),
            values=self.values.copy(),
            constant=self.constant.copy(),
            _tensors=self._tensors.copy(),
        )

    def learn(self, name: str, kind: TypeProto) -> None:
        """Note a tensor's type; an output that is left out, which has no name, is no tensor."""
        if not name:
            return
        self.types[name] = kind
        if kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            shape = tuple([d.dim_value for d in dims if d.HasField("dim_value")])
            if len(shape) == len(dims):
                self.shapes[name] = shape

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these tensors' shapes are known."""
        return all(name in self.shapes for name in names)

    def tensor(self, name: str) -> TensorProto:
        """Give a known value as a TensorProto."""
        if name not in self._tensors:
            self._tensors[name] = from_array(self.values[name], name)
        return self._tensors[name]

    def learn_initialisers(self, graph: GraphProto) -> None:
        """Note what a graph holds: the types of all of its initialisers, the values of small ones."""
        for tensor in graph.initializer:
            self.learn(tensor.name, make_tensor_type_proto(tensor.data_type, tensor.dims))
            self.constant.add(tensor.name)
            if (
                prod(tensor.dims) <= SMALL
                and tensor.data_type != TensorProto.STRING
                and tensor.data_location != TensorProto.EXTERNAL
            ):
                self.values[tensor.name] = to_array(tensor)
                self._tensors[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            self.learn(sparse.values.name, make_tensor_type_proto(sparse.values.data_type, sparse.dims))
            self.constant.add(sparse.values.name)


def is_tensor(kind: TypeProto) -> bool:
    """Whether a type is a tensor's, or says nothing."""
    return kind.WhichOneof("value") in ("tensor_type", None)
