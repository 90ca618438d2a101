"""Costs as terms, each counted from the shapes of a few tensors, and a total."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.channels.ledger import Contraction
from onnxprune.channels.values import Shape
from onnxprune.model.graph import reads
from onnxprune.operators.card import card_of
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.settings.planning import Quantity
from onnxprune.shapes import Shapes
from onnxprune.shapes.loops import run_counts, step_counts

ShapeOf = Callable[[str], Shape]
Amounts = NDArray[np.int64]

# Tensors of these types are shapes, indices and flags, neither weights nor activations. int32 holds indices, and biases
# of quantized layers, which only their readers tell apart.
_NOT_DATA = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
_NOT_WEIGHTS = (*_NOT_DATA, TensorProto.INT32)


@dataclass(frozen=True, slots=True)
class Term:
    """An amount that depends on shapes.

    Attributes:
        tensors: the tensors whose shapes matter.
        count: returns the amount for these shapes.
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
        terms: the terms.
        total: returns the cost for the amounts of all terms, shape (terms,).
    """

    terms: tuple[Term, ...]
    total: Callable[[Amounts], int]

    def of(self, shape: ShapeOf) -> int:
        """Return the cost for given shapes."""
        return self.total(np.array([term.of(shape) for term in self.terms], dtype=np.int64))


def terms_of(
    quantity: Quantity, proto: ModelProto, shapes: Shapes, contractions: Mapping[int, Contraction] | None = None
) -> Sum:
    """Return a cost of a normalized model as terms.

    Args:
        quantity: the cost.
        proto: the model.
        shapes: its concretized shapes.
        contractions: those that its trace recorded, by the node's index, if it was traced.
    """
    if quantity == "memory":
        return _memory(proto, shapes)
    if quantity == "macs":
        known = contractions or {}
        counted = macs_terms(proto, shapes, known)
        terms = [term for term in counted if term is not None]
    elif quantity == "params":
        terms = [Term((name,), prod) for name in weights_of(proto)]
    else:
        terms = [Term((name,), partial(_bytes, kind)) for name, kind in weights_of(proto).items()]
    return Sum(tuple(terms), lambda amounts: int(amounts.sum()))


def macs_terms(proto: ModelProto, shapes: Shapes, contractions: Mapping[int, Contraction]) -> Iterator[Term | None]:
    """Yield the multiply-accumulates of each node in one run of the model; None for one that has none."""
    graph = proto.graph
    runs = run_counts(graph, step_counts(graph, shapes.shapes, shapes.values))
    for i, (node, times) in enumerate(zip(graph.node, runs, strict=True)):
        call = multiply_accumulates(node, shapes.shapes, contractions.get(i))
        yield None if call is None else Term(call[0], call[1] if times == 1 else partial(_repeated, times, call[1]))


def _repeated(times: int, count: Callable[..., int], *shapes: Shape) -> int:
    return times * count(*shapes)


def weights_of(proto: ModelProto) -> dict[str, int]:
    """Return the types of the weights that are read, by name."""
    read = {n for node in proto.graph.node for n in reads(node)} | {o.name for o in proto.graph.output}
    return {t.name: t.data_type for t in stored_in(proto.graph) if t.name in read}


def stored_in(graph: GraphProto) -> list[TensorProto]:
    """Return the weights among a graph's initializers, biases of quantized layers included."""
    biases = set[str]()
    for node in graph.node:
        card = card_of(node.domain, node.op_type)
        others = {*(point for _, point, _ in card.zero_points), *card.picking}
        biases.update(name for i, name in enumerate(node.input) if card.zero_points and i not in others)
    whole = TensorProto.INT32
    return [t for t in graph.initializer if is_weight(t) or (t.data_type == whole and t.name in biases)]


def is_weight(tensor: TensorProto) -> bool:
    """Whether the type of an initializer is that of a weight, and not of a shape, an index or a flag."""
    return tensor.data_type not in _NOT_WEIGHTS


def _memory(proto: ModelProto, shapes: Shapes) -> Sum:
    """Return the peak memory of activations: a tensor lives from the node that makes it to its last reader."""
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
    # Inputs take memory from the start, read or not; unread outputs of nodes take none.
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
