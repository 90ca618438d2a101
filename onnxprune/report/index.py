"""Lookups on a traced model: the group of a unit, what pins it, the parameters it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels.ledger import Pin
from onnxprune.channels.values import Factor, Ids, Shape
from onnxprune.cost.terms import is_weight
from onnxprune.model.graph import GraphIndex
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import find_streams

KERNEL = "OP212"  # kernel positions; omitted from reports, because every convolution has them
ALONE = "OP210"  # the only unit on an axis; known once the ties are solved

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reach:
    """What can be removed of some channels.

    Attributes:
        groups: indices of the groups that the removable ones belong to, ascending.
        pins: codes of the reasons that pin the others, ascending.
    """

    groups: tuple[int, ...] = ()
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer and the units on its axes.

    Attributes:
        name: its name.
        shape: its shape.
        units: the unit of every position, by axis, shape (axis length,) each.
        readers: names of the nodes that read it, in graph order.
    """

    name: str
    shape: Shape
    units: Mapping[int, Ids]
    readers: tuple[str, ...]

    def among(self, chosen: Mask) -> int:
        """Count the elements all of whose slices belong to chosen units; axes without units are ignored."""
        counts = {a: int(np.count_nonzero(chosen[u])) for a, u in self.units.items()}
        return prod(counts.get(axis, n) for axis, n in enumerate(self.shape)) if counts else 0

    def touched(self, chosen: Mask) -> int:
        """Count the elements with a slice that belongs to a chosen unit."""
        return (prod(self.shape) - self.among(~chosen)) if self.units else 0


class Index:
    """Lookups on a traced model.

    Attributes:
        graph: the traced model.
        tensors: which nodes make and read each of its tensors.
        nodes: its nodes by name, in graph order.
        group_of: the index of every unit's group, -1 for units that can't be removed, shape (units,).
        pins: the units that each pin holds, in the order of the walk.
        pinned_by: which units each reason pins, by code, shape (units,) each.
        weights: the initializers that are weights and were seen as data.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        """Index a traced model."""
        self.graph = graph
        self.tensors = GraphIndex(graph.proto.graph)
        self.nodes = {node.name: node for node in self.tensors.nodes}
        self.group_of = np.full(len(graph.pinned), -1, dtype=np.int64)
        for group in graph.groups:
            self.group_of[group.units] = group.index
        self.pins: dict[Pin, Ids] = {}
        for units, pin in graph.reasons():
            self.pins[pin] = np.union1d(self.pins.get(pin, units), units)
        self.pinned_by = self._masks()
        self.weights = tuple(_weights(graph))

    @cached_property
    def fixed(self) -> Mapping[int, str]:
        """Why the basis of a group's channels can't be changed, by the group's index; not for those where it can."""
        return {index: str(why) for index, why in find_streams(self.graph)[1].items()}

    def reach(self, parts: Iterable[Ids]) -> Reach:
        """Return what can be removed of some arrays of units."""
        units = _joined(parts)
        groups = np.unique(self.group_of[units])
        codes = (c for c, mask in self.pinned_by.items() if c != KERNEL and mask[units].any())
        return Reach(tuple(int(g) for g in groups if g >= 0), tuple(codes))

    def units(self, factor: Factor) -> Ids:
        """Return the units on some axes of a tensor, sorted, each once."""
        return np.unique(self.graph.unit_of[factor.ids])

    def units_on(self, tensors: Iterable[str]) -> Ids:
        """Return the units on any axis of some tensors; a unit may come several times."""
        return _joined(self.units(factor) for tensor in tensors for factor in self.factors(tensor))

    def factors(self, tensor: str) -> tuple[Factor, ...]:
        """Return the id arrays on a tensor; none for an unknown tensor.

        Those of a grouped convolution's weight hold the channels of all groups.
        """
        value = self.graph.values.get(tensor)
        factors = () if value is None else value.factors
        if (tensor, 1) not in self.graph.per_group:
            return factors
        return tuple(Factor(f.axes, self.graph.slots[tensor, 1]) if f.axes == (1,) else f for f in factors)

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is a weight or computed from weights only."""
        value = self.graph.values.get(tensor)
        return value is not None and value.constant

    def weight_of(self, node: NodeProto) -> str | None:
        """Return the largest constant input of a node (see `is_constant`); None if it has none."""
        constant = (n for n in node.input if self.is_constant(n) and self.graph.values[n].factors)
        return max(constant, key=lambda n: prod(self.graph.values[n].shape), default=None)

    def by_group(self) -> list[int]:
        """Return, for every group, the number of parameters that removing all of it removes."""
        counts = [0] * len(self.graph.groups)
        for weight in self.weights:
            met = {int(g) for u in weight.units.values() for g in np.unique(self.group_of[u])}
            for group in met - {-1}:
                counts[group] += weight.touched(self.group_of == group)
        return counts

    def touching(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that make or read a tensor, in graph order."""
        maker = self.tensors.makers.get(tensor)
        return [*([] if maker is None else [maker]), *self.tensors.readers.get(tensor, ())]

    def _masks(self) -> dict[str, Mask]:
        pinned, found = self.graph.pinned, dict[str, Mask]()
        for pin, units in self.pins.items():
            found.setdefault(pin.code, np.zeros_like(pinned))[units] = True
        alone = pinned & ~np.logical_or.reduce([*found.values(), np.zeros_like(pinned)])
        if alone.any():
            found[ALONE] = found.get(ALONE, np.zeros_like(alone)) | alone
        return dict(sorted(found.items()))


def _joined(parts: Iterable[Ids]) -> Ids:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _weights(graph: ChannelGraph) -> Iterator[Weight]:
    axes: dict[str, dict[int, Ids]] = {}
    for (name, axis), ids in graph.slots.items():
        first = ids[: len(ids) // graph.per_group.get((name, axis), 1)]  # all groups lose the same number
        axes.setdefault(name, {})[axis] = graph.unit_of[first]
    for tensor in graph.proto.graph.initializer:
        if is_weight(tensor) and tensor.name in axes:
            yield Weight(tensor.name, tuple(tensor.dims), axes[tensor.name], tuple(graph.consumers(tensor.name)))
