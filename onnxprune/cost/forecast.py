"""Evaluate one cost of a traced model for many removals, as budgets do.

Every size of every tensor has a number; sizes that the same units make up share one. Every term of the cost depends
on a few sizes, and from one removal to the next only terms whose sizes changed are recounted.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from onnxprune.channels.values import Factor, Ids, Mask
from onnxprune.cost.terms import Amounts, terms_of
from onnxprune.settings.planning import Quantity
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import masks

Sizes = tuple[int, ...]  # the shape of a tensor as numbers of sizes


class Forecast:
    """A cost of a traced model as a function of the units removed, exactly as `onnxprune.cost.cost.cost` counts it."""

    def __init__(self, graph: ChannelGraph, quantity: Quantity) -> None:
        """Index which terms depend on which sizes."""
        made_of = terms_of(quantity, graph.proto, graph.shapes, graph.ledger.contractions)
        table = _Table(graph)
        self._terms = {
            i: (term, tuple(map(table.shape, term.tensors)))
            for i, term in enumerate(made_of.terms)
            if all(map(table.knows, term.tensors))
        }
        self._total = made_of.total
        self._table = table
        self._readers: list[list[int]] = [[] for _ in range(len(table))]
        for i, (_, shapes) in self._terms.items():
            for size in set(chain.from_iterable(shapes)):
                self._readers[size].append(i)
        self._last: Ids | None = None
        self._amounts: Amounts = np.zeros(len(made_of.terms), dtype=np.int64)

    def __call__(self, removed: Mask) -> int:
        """Return the cost without some units, shape (units,)."""
        sizes = self._table.sizes(removed)
        stale = set(self._terms)
        if self._last is not None:
            changed = np.flatnonzero(sizes != self._last).tolist()
            stale = set(chain.from_iterable(self._readers[i] for i in changed))
        self._last = sizes
        value = sizes.tolist().__getitem__
        for i in stale:
            term, shapes = self._terms[i]
            self._amounts[i] = term.count(*(tuple(map(value, shape)) for shape in shapes))
        return self._total(self._amounts)


class _Table:
    """The sizes of a traced model's tensors, numbered."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._numbers: dict[object, int] = {}
        self._fixed: dict[int, int] = {}  # sizes without channels
        self._lines: dict[int, Ids] = {}  # the units along the others
        self._blocks: dict[Sizes, Ids] = {}  # the units of id arrays on several axes

    def __len__(self) -> int:
        return len(self._numbers)

    def knows(self, tensor: str) -> bool:
        return tensor in self._graph.values or tensor in self._graph.shapes.shapes

    def shape(self, tensor: str) -> Sizes:
        """Return a tensor's shape as numbers of sizes, adding new ones."""
        value = self._graph.values.get(tensor)
        shape = value.shape if value is not None else self._graph.shapes.shapes[tensor]
        numbers = [self._number(n) for n in shape]
        for n, number in zip(shape, numbers, strict=True):
            self._fixed[number] = n
        for factor in value.factors if value is not None else ():
            for axis, number in zip(factor.axes, self._along(factor), strict=True):
                numbers[axis] = number
        return tuple(numbers)

    def sizes(self, removed: Mask) -> Ids:
        """Return all sizes without some units, shape (sizes,)."""
        sizes = np.empty(len(self), dtype=np.int64)
        sizes[list(self._fixed)] = list(self._fixed.values())
        keep = ~removed
        if self._lines:
            ends = np.cumsum([0, *map(len, self._lines.values())])
            before = np.concatenate([[0], np.cumsum(keep[np.concatenate(list(self._lines.values()))])])
            sizes[list(self._lines)] = np.diff(before[ends])
        for numbers, units in self._blocks.items():
            sizes[list(numbers)] = [np.count_nonzero(mask) for mask in masks(keep[units])]
        return sizes

    def _along(self, factor: Factor) -> Sizes:
        units = self._graph.unit_of[factor.ids]
        key = (units.shape, units.tobytes())
        numbers = tuple(self._number((*key, dim)) for dim in range(units.ndim))
        if units.ndim == 1:
            self._lines[numbers[0]] = units
        else:
            self._blocks[numbers] = units
        return numbers

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))
