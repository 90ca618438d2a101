"""Where tensors have the channels of a group, head by head.

Where a part of every head's width leaves an attention, a unit is one position in each head. Which head a position
belongs to is what a trace tells that lets whole heads leave: its units are the heads. A weight that makes queries and
keys at once has several copies of each channel of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxprune.channels.values import Factor, Ids, Shape, spread
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.tracer import trace


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a tensor has the channels of a group: each of them equally often in each head.

    Attributes:
        axes: the tensor's axes that they lie along.
        grid: the positions along these, shape (heads, copies, channels, axes); copies in the order of their positions,
            channels in that of their units.
    """

    axes: tuple[int, ...]
    grid: Ids

    @property
    def copies(self) -> int:
        """How often each channel of a head is there."""
        return int(self.grid.shape[1])

    @property
    def channels(self) -> int | None:
        """The axis along which the channels of a head lie; None if there are several."""
        return self._axis((self.grid != self.grid[:, :, :1]).any(axis=(0, 1, 2)))

    @property
    def heads(self) -> int | None:
        """The axis along which the heads lie; None if there are several, or only one head."""
        return self._axis((self.grid != self.grid[:1]).any(axis=(0, 1, 2)))

    def _axis(self, varies: Ids) -> int | None:
        return self.axes[int(np.flatnonzero(varies)[0])] if np.count_nonzero(varies) == 1 else None


class Places:
    """Finds where tensors have the channels of groups."""

    def __init__(self, graph: ChannelGraph) -> None:
        """Take a traced model."""
        self.graph = graph
        self._heads: dict[int, Ids] = {}

    @cached_property
    def _by_head(self) -> ChannelGraph:
        graph = self.graph
        return trace(graph.proto, shapes=graph.shapes, policies=replace(graph.policies, attention="heads"))

    def of_weight(self, tensor: str, axis: int, group: Group) -> Place | None:
        """Return where a weight has a group's channels along an axis; None unless it has all of each head."""
        own = Factor((axis,), self.graph.slots[tensor, axis])
        apart = [Factor((axis,), self._by_head.slots[tensor, axis])] if group.width > 1 else []
        return self._place(own, apart, group, self.graph.shapes.shapes[tensor])

    def of(self, name: str, factor: Factor, group: Group) -> Place | None:
        """Return where a tensor has a group's channels.

        Args:
            name: the tensor.
            factor: the ids that are the group's.
            group: the group.

        Returns:
            None unless the tensor has each channel equally often in each head.
        """
        apart = list[Factor]()
        if group.width > 1 and name in self._by_head.values:
            heads, known = self.heads(group), self._by_head.values[name].factors
            apart = [f for f in known if np.isin(self._by_head.unit_of[f.ids], heads).any()]
            if len(apart) > 1:
                apart = [f for f in apart if not set(f.axes).isdisjoint(factor.axes)]
        return self._place(factor, apart, group, self.graph.values[name].shape)

    def heads(self, group: Group) -> Ids:
        """Return the heads of a group, as units of the trace by heads, ascending; none if they aren't told apart."""
        if group.index not in self._heads:
            slot = group.slots[0]
            mine = np.isin(self.graph.unit_of[self.graph.slots[slot]], group.units)
            found = np.unique(self._by_head.unit_of[self._by_head.slots[slot]][mine])
            self._heads[group.index] = found[:0] if group.width % len(found) or len(found) == 1 else found
        return self._heads[group.index]

    def _place(self, own: Factor, apart: Iterable[Factor], group: Group, shape: Shape) -> Place | None:
        units, axes = self.graph.unit_of[own.ids], own.axes
        heads, known = np.zeros_like(units), np.zeros(1, dtype=np.int64)
        if group.width > 1:
            factors = list(apart)
            if len(factors) != 1:
                return None
            (labels,), known = factors, self.heads(group)
            axes = tuple(sorted({*own.axes, *labels.axes}))
            units = spread(Factor(own.axes, units), axes, shape)
            heads = spread(Factor(labels.axes, self._by_head.unit_of[labels.ids]), axes, shape)
        mine = np.argwhere(np.isin(units, group.units))
        at = tuple(mine.T)
        copies = max(len(mine) // (len(known) * len(group.units)), 1)
        order = np.lexsort((*at[::-1], units[at], heads[at]))
        expected = np.repeat(known, copies * len(group.units)), np.tile(np.sort(group.units).repeat(copies), len(known))
        found = heads[at][order], units[at][order]
        if not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
            return None
        grid = mine[order].reshape(len(known), len(group.units), copies, len(axes))
        return Place(axes, grid.swapaxes(1, 2))
