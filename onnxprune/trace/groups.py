"""Groups: the removable units with the same footprint, what a user thinks of as a layer's channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.trace.channels import Approximation
from onnxprune.trace.values import Ids

if TYPE_CHECKING:
    from onnxprune.trace.graph import ChannelGraph


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The removable units with the same footprint: the channels of a layer and of everything coupled to it.

    Attributes:
        index: the group's number in its graph.
        name: the first node that makes the group's channels.
        nodes: all nodes whose weights it slices.
        producers: those of them whose output has the group's channels.
        units: the numbers of its units, in the order of their channels, shape (n,).
        width: how many positions a unit has on the axis where it has most.
        widths: how many channels a unit is where it is made (its readers may see each several times, or one for a
            group of channels), each number once, ascending.
        slots: the weight axes it slices, as (initialiser, axis).
        approximations: why removal is more than zeroing; empty for an exact group.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    producers: tuple[str, ...]
    units: Ids
    width: int
    widths: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]
    approximations: tuple[Approximation, ...]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The nodes that take statistics over the group's channels."""
        return tuple(dict.fromkeys(a.node for a in self.approximations))

    @property
    def exact(self) -> bool:
        """Whether removing the group's units equals zeroing what the next contraction reads."""
        return not self.approximations


def make_groups(graph: ChannelGraph) -> tuple[Group, ...]:
    """Gather the removable units of a solved graph into groups, in the order of their first channels."""
    unit, slot, count, _ = graph.incidence
    made = np.array([s not in graph.summed for s in graph.slots] + [False] * (len(graph.pieces)), dtype=bool)
    members = list(_members(graph))
    group_of = np.full(graph.unit_count, -1, dtype=np.int64)
    for index, units in enumerate(members):
        group_of[units] = index
    notes: dict[int, list[Approximation]] = {}
    for units, note in graph.approximations():
        for index in np.unique(group_of[units]).tolist():
            notes.setdefault(index, []).append(note)
    rank = {node.name: i for i, node in enumerate(graph.proto.graph.node)}
    makes = _made(graph)
    groups = []
    for index, units in enumerate(members):
        first = int(units[0])
        lo, hi = np.searchsorted(unit, [first, first + 1])
        weights = slot[lo:hi] < len(graph.slots)
        own = made[slot[lo:hi]] if made[slot[lo:hi]].any() else weights
        slots = tuple(graph.slots_of(first))
        nodes = sorted({n for tensor, _ in slots for n in graph.consumers(tensor)}, key=rank.__getitem__)
        producers = tuple(n for n in nodes if first in makes.get(n, ()))
        groups.append(
            Group(
                index=index,
                name=next(iter([*producers, *nodes, slots[0][0]])),
                nodes=tuple(nodes),
                producers=producers,
                units=units,
                width=int(count[lo:hi][weights].max()),
                widths=tuple(np.unique(count[lo:hi][own]).tolist()),
                slots=slots,
                approximations=tuple(dict.fromkeys(notes.get(index, ()))),
            )
        )
    return tuple(groups)


def _members(graph: ChannelGraph) -> Iterator[Ids]:
    """Yield the units of each group. Footprints are told by sums of random numbers, one for each slot."""
    unit, slot, count, lengths = graph.incidence
    random = np.random.default_rng(0).integers(1, 2**63, size=len(lengths), dtype=np.uint64)
    footprint = np.zeros(graph.unit_count, dtype=np.uint64)
    np.add.at(footprint, unit, random[slot] * count.astype(np.uint64))
    removable = np.flatnonzero(~graph.pinned)
    _, first, group_of = np.unique(footprint[removable], return_index=True, return_inverse=True)
    by_group = np.split(removable[np.argsort(group_of, kind="stable")], np.cumsum(np.bincount(group_of))[:-1])
    for index in np.argsort(first):
        yield by_group[index]


def _made(graph: ChannelGraph) -> dict[str, set[int]]:
    """Return the units that each contraction's output has, by the node's name."""
    made = {}
    for node in graph.proto.graph.node:
        value = graph.values.get(node.output[0])
        operands = (graph.values.get(name) for name in node.input[1:])
        if value is not None and any(v is not None and len(v.factors) > 1 for v in operands):
            made[node.name] = {u for f in value.factors for u in graph.unit_of[f.ids].ravel().tolist()}
    return made
