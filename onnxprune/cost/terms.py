"""What costs are made of: terms, each counted from the shapes of a few tensors, and how they make up a total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.channels.values import Shape
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.settings.planning import Quantity
from onnxprune.shapes import Shapes

ShapeOf = Callable[[str], Shape]
Amounts = NDArray[np.int64]

# Tensors of these types are shapes, indices and flags, neither weights nor activations. Indices may be int32, too, and
# so are the biases of quantized convolutions: too few to matter.
_NOT_DATA = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
_NOT_WEIGHTS = (*_NOT_DATA, TensorProto.INT32)


@dataclass(frozen=True, slots=True)
class Term:
    """An amount that depends on shapes.

    Attributes:
        tensors: the tensors whose shapes matter.
        count: gives the amount for these shapes.
    """

    tensors: tuple[str, ...]
    count: Callable[..., int]

    def of(self, shape: ShapeOf) -> int:
        """Return the amount for given shapes; 0 where one isn't known."""
        try:
            return self.count(*map(shape, self.tensors))
        except KeyError:
            return 0


@dataclass(frozen=True, slots=True)
class Sum:
    """A cost as terms.

    Attributes:
        terms: what it is made of.
        total: gives the cost for the amounts of all terms, shape (terms,).
    """

    terms: tuple[Term, ...]
    total: Callable[[Amounts], int]

    def of(self, shape: ShapeOf) -> int:
        """Return the cost for given shapes."""
        return self.total(np.array([term.of(shape) for term in self.terms], dtype=np.int64))


def terms_of(quantity: Quantity, proto: ModelProto, shapes: Shapes) -> Sum:
    """Return what a cost of a normalized model is made of."""
    return _SUMS[quantity](proto, shapes)


def weights_of(proto: ModelProto) -> dict[str, int]:
    """Return the types of the weights that something reads, by name."""
    read = {n for node in proto.graph.node for n in node.input} | {o.name for o in proto.graph.output}
    return {t.name: t.data_type for t in proto.graph.initializer if is_weight(t) and t.name in read}


def is_weight(tensor: TensorProto) -> bool:
    """Whether an initializer is a weight, and not a shape, an index or a flag."""
    return tensor.data_type not in _NOT_WEIGHTS


def _plain(amounts: Amounts) -> int:
    return int(amounts.sum())


def _macs(proto: ModelProto, shapes: Shapes) -> Sum:
    calls = (multiply_accumulates(node, shapes.shapes) for node in proto.graph.node)
    return Sum(tuple(Term(*call) for call in calls if call), _plain)


def _params(proto: ModelProto, shapes: Shapes) -> Sum:
    return Sum(tuple(Term((name,), prod) for name in weights_of(proto)), _plain)


def _size(proto: ModelProto, shapes: Shapes) -> Sum:
    return Sum(tuple(Term((name,), partial(_bytes, kind)) for name, kind in weights_of(proto).items()), _plain)


def _memory(proto: ModelProto, shapes: Shapes) -> Sum:
    """The peak of living activations: a tensor lives from the node that makes it to the last that reads it."""
    graph = proto.graph
    initializers = {t.name for t in graph.initializer}
    kinds = {
        name: kind
        for name, kind in shapes.types.items()
        if kind not in _NOT_DATA and name not in initializers and name in shapes.shapes
    }
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last |= {o.name: len(graph.node) for o in graph.output}
    made = {i.name: 0 for i in graph.input} | {o: i for i, node in enumerate(graph.node) for o in node.output}
    # Inputs take room from the start, read or not; what a node makes and nobody reads takes none.
    inputs = {i.name for i in graph.input}
    lives = [n for n in kinds if n in made and (n in last or n in inputs)]
    first = np.array([made[n] for n in lives], dtype=np.int64)
    after = np.array([last.get(n, len(graph.node)) + 1 for n in lives], dtype=np.int64)

    def peak(amounts: Amounts) -> int:
        change = np.zeros(len(graph.node) + 3, dtype=np.int64)
        np.add.at(change, first, amounts)
        np.subtract.at(change, after, amounts)
        return int(np.cumsum(change).max(initial=0))

    return Sum(tuple(Term((n,), partial(_bytes, kinds[n])) for n in lives), peak)


def _bytes(kind: int, shape: Shape) -> int:
    elements = prod(shape)
    if kind in (TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1):
        return (elements + 1) // 2
    return elements * _itemsize(kind)


@cache
def _itemsize(kind: int) -> int:
    return int(tensor_dtype_to_np_dtype(kind).itemsize)


_SUMS: Mapping[Quantity, Callable[[ModelProto, Shapes], Sum]] = {
    "params": _params,
    "macs": _macs,
    "size": _size,
    "memory": _memory,
}
