"""The result of a trace: which channels leave together, which can't leave, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.shapes import Shapes
from onnxprune.trace.channels import Approximation, Channels, Pin
from onnxprune.trace.values import Ids, Value


@dataclass(frozen=True, slots=True)
class Slice:
    """Positions along one axis of one initialiser.

    Attributes:
        tensor: the initialiser's name.
        axis: its axis.
        positions: the positions, ascending, shape (n,).
    """

    tensor: str
    axis: int
    positions: Ids


@dataclass(frozen=True, slots=True)
class Unit:
    """Channels that can only leave together.

    Attributes:
        index: the unit's number in its graph.
        slices: everything that leaves with it.
    """

    index: int
    slices: tuple[Slice, ...]


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
        slots: the weight axes it slices, as (initialiser, axis).
        approximations: why removal is more than zeroing; empty for an exact group.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    producers: tuple[str, ...]
    units: Ids
    width: int
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


class ChannelGraph:
    """Channel dependencies of a model.

    Attributes:
        proto: the normalised model that was traced.
        shapes: its concretised shapes.
        values: what is known of every tensor of the main graph.
        unit_of: the unit of every channel id, shape (ids,).
        slots: ids on each axis of each initialiser, by (initialiser, axis).
        pinned: for every unit whether it can't leave, shape (units,).
        groups: the removable units, by footprint.
    """

    def __init__(self, proto: ModelProto, shapes: Shapes, values: Mapping[str, Value], channels: Channels) -> None:
        """Solve the ties of a walk; made by `trace`."""
        self.proto = proto
        self.shapes = shapes
        self.values = values
        self._channels = channels
        roots, self.unit_of = np.unique(channels.solve(), return_inverse=True)
        self._unit_count = len(roots)
        initialisers = [t.name for t in proto.graph.initializer if t.name in values]
        self.slots: dict[tuple[str, int], Ids] = {
            (name, f.axes[0]): f.ids for name in initialisers for f in values[name].factors
        }
        self.pinned: NDArray[np.bool_] = np.zeros(self._unit_count, dtype=bool)
        for ids, _ in channels.pins:
            self.pinned[self.unit_of[ids]] = True
        self._incidence = self._make_incidence()
        self.pinned |= self._alone()
        self.groups: tuple[Group, ...] = tuple(self._make_groups())

    def unit(self, index: int) -> Unit:
        """Return a unit with all its slices."""
        slots = self._slots_of(index)
        return Unit(
            index,
            tuple(
                Slice(tensor, axis, np.flatnonzero(self.unit_of[self.slots[tensor, axis]] == index))
                for tensor, axis in slots
            ),
        )

    def pins(self, unit: int) -> list[Pin]:
        """Return why a unit can't leave; empty for a removable one."""
        found = [pin for ids, pin in self._channels.pins if (self.unit_of[ids] == unit).any()]
        if not found and self.pinned[unit]:
            slots = ", ".join(f"{t} axis {a}" for t, a in self._slots_of(unit)[:3])
            reason = f"it is all there is of {slots}" if slots else "no weight holds it"
            found = [Pin("OP210", slots.partition(" axis")[0], reason)]
        return found

    def consumers(self, tensor: str) -> list[str]:
        """Return the names of the nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def path(self, start: Ids, goal: Ids) -> list[str]:
        """Return the nodes over which ids ``start`` are coupled to ids ``goal``, the shortest way."""
        left, right, nodes = self._channels.edges()
        goals = np.zeros(len(self.unit_of), dtype=bool)
        goals[goal] = True
        came = np.full(len(self.unit_of), -1, dtype=np.int64)  # the tie over which an id was reached
        seen = np.zeros(len(self.unit_of), dtype=bool)
        seen[start] = True
        while not (seen & goals).any():
            out, back = seen[left] & ~seen[right], seen[right] & ~seen[left]
            if not (out.any() or back.any()):
                return []
            came[right[out]] = np.flatnonzero(out)
            came[left[back]] = np.flatnonzero(back)
            seen[right[out]] = seen[left[back]] = True
        path: list[str] = []
        at = int(np.flatnonzero(seen & goals)[0])
        while came[at] >= 0:
            tie = int(came[at])
            name = self.proto.graph.node[int(nodes[tie])].name
            if not path or path[-1] != name:
                path.append(name)
            at = int(left[tie] if right[tie] == at else right[tie])
        return path[::-1]

    def pinned_ids(self, pin: Pin) -> Ids:
        """Return the ids that a pin holds."""
        found = [ids for ids, p in self._channels.pins if p == pin]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        readers: dict[str, list[str]] = {}
        for node in self.proto.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node.name)
        return readers

    def _make_incidence(self) -> tuple[Ids, Ids, Ids, Ids]:
        """Return units, slots and how often they meet, ordered by unit, and the lengths of all slots.

        Pieces of axes come after the weights' slots: they are no weights, but tell units apart and must not run empty.
        """
        arrays = [*self.slots.values(), *self._channels.pieces]
        lengths = np.array([a.size for a in arrays], dtype=np.int64)
        if not arrays:
            return (np.empty(0, dtype=np.int64),) * 4
        slot = np.repeat(np.arange(len(arrays)), lengths)
        unit = self.unit_of[np.concatenate([a.ravel() for a in arrays])]
        keys, counts = np.unique(unit * len(arrays) + slot, return_counts=True)
        return keys // len(arrays), keys % len(arrays), counts, lengths

    def _alone(self) -> NDArray[np.bool_]:
        """Tell the units that fill an axis alone, and those that no weight holds."""
        unit, slot, count, lengths = self._incidence
        alone = np.zeros(self._unit_count, dtype=bool)
        alone[unit[count == lengths[slot]]] = True
        held = np.zeros(self._unit_count, dtype=bool)
        held[unit[slot < len(self.slots)]] = True
        return alone | ~held

    def _slots_of(self, unit: int) -> list[tuple[str, int]]:
        units, slots, _, _ = self._incidence
        names = list(self.slots)
        lo, hi = np.searchsorted(units, [unit, unit + 1])
        return [names[s] for s in slots[lo:hi] if s < len(names)]

    def _make_groups(self) -> Iterator[Group]:
        unit, slot, count, lengths = self._incidence
        # A footprint is told by a sum of random numbers, one for each slot: equal sums, equal footprints.
        random = np.random.default_rng(0).integers(1, 2**63, size=len(lengths), dtype=np.uint64)
        footprint = np.zeros(self._unit_count, dtype=np.uint64)
        np.add.at(footprint, unit, random[slot] * count.astype(np.uint64))
        removable = np.flatnonzero(~self.pinned)
        if not len(removable):
            return
        _, first, group_of = np.unique(footprint[removable], return_index=True, return_inverse=True)
        order = np.argsort(first)
        members = np.split(removable[np.argsort(group_of, kind="stable")], np.cumsum(np.bincount(group_of))[:-1])
        width = np.zeros(self._unit_count, dtype=np.int64)
        np.maximum.at(width, unit, np.where(slot < len(self.slots), count, 0))
        notes = self._approximations_by_unit()
        rank = {node.name: i for i, node in enumerate(self.proto.graph.node)}
        for index, g in enumerate(order):
            units = members[g]
            slots = tuple(self._slots_of(int(units[0])))
            nodes = sorted({n for t, _ in slots for n in self.consumers(t)}, key=rank.__getitem__)
            producers = tuple(n for n in nodes if self._makes(rank[n], int(units[0])))
            name = next(iter([*producers, *nodes, slots[0][0]]))
            found = (note for u in units.tolist() for note in notes.get(u, ()))
            approximations = tuple(dict.fromkeys(found))
            yield Group(
                *(
                    index,
                    name,
                    tuple(nodes),
                    producers,
                    units,
                    int(width[units[0]]),
                    slots,
                    approximations,
                )
            )

    def _makes(self, node: int, unit: int) -> bool:
        """Whether a node is a contraction whose output has a unit's channels."""
        source = self.proto.graph.node[node]
        value = self.values.get(source.output[0])
        contracts = any(len(self.values[n].factors) > 1 for n in source.input[1:] if n in self.values)
        return contracts and value is not None and any((self.unit_of[f.ids] == unit).any() for f in value.factors)

    def _approximations_by_unit(self) -> dict[int, list[Approximation]]:
        notes: dict[int, list[Approximation]] = {}
        for ids, note in self._channels.approximations:
            for unit in np.unique(self.unit_of[ids]).tolist():
                if note not in notes.setdefault(unit, []):
                    notes[unit].append(note)
        return notes
