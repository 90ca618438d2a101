"""Groups: the removable units with the same footprint, what a user thinks of as a layer's channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.ledger import Approximation
from onnxprune.channels.values import Ids
from onnxprune.trace.bundles import Bundle

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
        sets: which of the units leave together, by their place in ``units``, shape (sets, n): each by itself, but for
            those that must leave in equal number of each group of a convolution.
        kinds: the kind of each, shape (sets, n); units of the same kind may change places.
        width: how many positions a unit has on the axis where it has most.
        widths: how many channels a set is where it is made (its readers may see each several times, or one for a
            group of channels), each number once, ascending.
        slots: the weight axes it slices, as (initializer, axis).
        approximations: why removal is more than zeroing; empty for an exact group.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    producers: tuple[str, ...]
    units: Ids
    sets: Ids
    kinds: Ids
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

    def deal(self, scores: NDArray[np.float64]) -> Ids:
        """Put the units into sets by importance: the least important of each kind leave together, and first.

        Args:
            scores: importance of the units, shape (units,).

        Returns:
            Places in ``units``, the least important set first, shape (sets, n).
        """
        dealt = self.sets.copy()
        for kind in np.unique(self.kinds):
            places = self.kinds == kind
            own = self.sets[places]
            dealt[places] = own[np.argsort(scores[own], kind="stable")]
        return dealt[np.argsort(scores[dealt].mean(axis=1), kind="stable")]


def make_groups(graph: ChannelGraph) -> tuple[Group, ...]:
    """Gather the removable units of a solved graph into groups, in the order of their first channels."""
    unit, slot, count, _ = graph.incidence
    begin = np.searchsorted(unit, np.arange(graph.unit_count + 1)).tolist()  # where each unit's slots are
    names = list(graph.slots)
    made = np.array([s not in graph.summed for s in graph.slots] + [False] * (len(graph.pieces)), dtype=bool)
    members = list(_members(graph))
    group_of = np.full(graph.unit_count, -1, dtype=np.int64)
    for index, (sets, _) in enumerate(members):
        group_of[sets] = index
    notes: dict[int, list[Approximation]] = {}
    for units, note in graph.approximations():
        for index in np.unique(group_of[units]).tolist():
            notes.setdefault(index, []).append(note)
    rank = {node.name: i for i, node in enumerate(graph.proto.graph.node)}
    makes = _made(graph)
    groups = []
    for index, (sets, kinds) in enumerate(members):
        single = sets.shape[1] == 1  # as it mostly is; such units are in order
        units = sets[:, 0] if single else np.sort(sets, axis=None)
        first = sets[0].tolist()
        places: dict[int, list[int]] = {}  # how often every slot holds a unit of the first set, for each that it holds
        for u in first:
            mine = slice(begin[u], begin[u + 1])
            for s, n in zip(slot[mine].tolist(), count[mine].tolist(), strict=True):
                places.setdefault(s, []).append(n)
        weights = {s: ns for s, ns in places.items() if s < len(names)}
        own = {s: ns for s, ns in places.items() if made[s]} or weights
        slots = tuple(names[s] for s in weights)
        nodes = sorted({n for tensor, _ in slots for n in graph.consumers(tensor)}, key=rank.__getitem__)
        producers = tuple(n for n in nodes if not makes.get(n, frozenset()).isdisjoint(first))
        groups.append(
            Group(
                index=index,
                name=next(iter([*producers, *nodes, slots[0][0]])),
                nodes=tuple(nodes),
                producers=producers,
                units=units,
                sets=np.arange(len(sets))[:, None] if single else np.searchsorted(units, sets),
                kinds=kinds,
                width=max(max(ns) for ns in weights.values()),
                widths=tuple(sorted({sum(ns) for ns in own.values()})),
                slots=slots,
                approximations=tuple(dict.fromkeys(notes.get(index, ()))),
            )
        )
    return tuple(groups)


def footprints(graph: ChannelGraph) -> NDArray[np.uint64]:
    """Tell where each unit stands: units with equal numbers stand as often in the same slots, shape (units,).

    The numbers are sums of random ones, one for each slot.
    """
    unit, slot, count, lengths = graph.incidence
    random = np.random.default_rng(0).integers(1, 2**63, size=len(lengths), dtype=np.uint64)
    footprint = np.zeros(graph.unit_count, dtype=np.uint64)
    np.add.at(footprint, unit, random[slot] * count.astype(np.uint64))
    return footprint


def _members(graph: ChannelGraph) -> Iterator[tuple[Ids, Ids]]:
    """Yield the units of each group, a row for those that leave together, and their kinds."""
    footprint = footprints(graph)
    free = ~graph.pinned
    bundles = [b for b in graph.bundles if len(b.units) > 1]
    for b in bundles:
        free[b.units] = False
    single = np.flatnonzero(free)
    found: dict[tuple[int, ...], list[Bundle]] = {}
    for b in bundles:
        found.setdefault((int(footprint[b.units].sum()), len(b.units)), []).append(b)
    rows = [(np.stack([b.units for b in own]), np.stack([b.kinds for b in own])) for own in found.values()]
    _, group_of = np.unique(footprint[single], return_inverse=True)
    by_group = np.split(single[np.argsort(group_of, kind="stable")], np.cumsum(np.bincount(group_of))[:-1])
    rows += [(units[:, None], np.zeros((len(units), 1), dtype=np.int64)) for units in by_group if len(units)]
    yield from sorted(rows, key=lambda row: int(row[0][0, 0] if row[0].shape[1] == 1 else row[0].min()))


def _made(graph: ChannelGraph) -> dict[str, set[int]]:
    """Return the units that each contraction's output has, by the node's name."""
    made = {}
    for node in graph.proto.graph.node:
        value = graph.values.get(node.output[0])
        operands = (graph.values.get(name) for name in node.input[1:])
        if value is not None and any(v is not None and len(v.factors) > 1 for v in operands):
            made[node.name] = {u for f in value.factors for u in graph.unit_of[f.ids].ravel().tolist()}
    return made
