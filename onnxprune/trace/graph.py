"""The result of a trace: which channels leave together, which can't leave, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.align import Attention, Grouped
from onnxprune.channels.ledger import Approximation, Channels, Pin
from onnxprune.channels.values import Ids, Value
from onnxprune.shapes import Shapes
from onnxprune.trace.bundles import Bundle, bundle
from onnxprune.trace.groups import Group, footprints, make_groups

if TYPE_CHECKING:
    from onnxprune.planning.residual_blocks import Block


@dataclass(frozen=True, slots=True)
class Slice:
    """Positions along one axis of one initializer.

    Attributes:
        tensor: the initializer's name.
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


class ChannelGraph:
    """Channel dependencies of a model.

    Attributes:
        proto: the normalized model that was traced.
        shapes: its concretized shapes.
        values: what is known of every tensor of the main graph.
        attention: what leaves an attention.
        grouped: what leaves a grouped convolution.
        original: the graph of the model with all its residual blocks; the graph itself if none was removed.
        reduced: the last graph made from this one by removing blocks.
        blocks: the residual blocks that were removed from the original.
        unit_of: the unit of every channel id, shape (ids,).
        slots: ids on each axis of each initializer, by (initializer, axis).
        per_group: the number of groups of those convolutions' weights that have channels of their own for each group
            along the second axis, by (initializer, 1): there, ``slots`` counts through all groups' channels.
        pinned: for every unit whether it can't leave, shape (units,).
        bundles: units that leave in equal number of each group of a convolution.
        groups: the removable units, by footprint.
        unit_count: how many units there are.
        incidence: units, slots and how often they meet, ordered by unit, and the lengths of all slots.
    """

    def __init__(
        self,
        proto: ModelProto,
        shapes: Shapes,
        values: Mapping[str, Value],
        channels: Channels,
        attention: Attention,
        grouped: Grouped,
    ) -> None:
        """Solve the ties of a walk; made by `trace`."""
        self.proto = proto
        self.shapes = shapes
        self.values = values
        self.attention = attention
        self.grouped = grouped
        self.original: ChannelGraph = self
        self.reduced: ChannelGraph | None = None
        self.blocks: tuple[Block, ...] = ()
        self._channels = channels
        initializers = [t.name for t in proto.graph.initializer if t.name in values]
        self.slots: dict[tuple[str, int], Ids] = {
            (name, f.axes[0]): f.ids for name in initializers for f in values[name].factors
        }
        self.per_group: dict[tuple[str, int], int] = {(name, 1): len(ids) for name, ids in channels.blocks.items()}
        self.slots.update({(name, 1): ids.ravel() for name, ids in channels.blocks.items()})
        self.bundles, self._stuck = self._solve()
        footprint = footprints(self)
        if uneven := [b for b in self.bundles if (footprint[b.units] != footprint[b.units[0]]).any()]:
            self._join(uneven)
            self.bundles, self._stuck = self._solve()
        self.pinned[self._stuck] = True
        self.groups: tuple[Group, ...] = make_groups(self)

    def _solve(self) -> tuple[tuple[Bundle, ...], Ids]:
        """Number the units; return what leaves in equal number, and the units that can't leave for that."""
        roots = self._channels.solve()
        first = roots == np.arange(len(roots))  # of every component, the smallest id
        self.unit_of: Ids = (np.cumsum(first) - 1)[roots]
        self.unit_count = int(np.count_nonzero(first))
        self.pinned: NDArray[np.bool_] = np.zeros(self.unit_count, dtype=bool)
        for ids, _ in self._channels.pins:
            self.pinned[self.unit_of[ids]] = True
        self.incidence = self._make_incidence()
        self.pinned |= self._alone()
        balances = [self.unit_of[ids] for ids, _ in self._channels.balances]
        return bundle(balances, self.pinned, footprints(self))

    def _join(self, bundles: list[Bundle]) -> None:
        """Make one unit of each bundle of units that stand in different places: there is nothing to choose among."""
        ids = np.concatenate([ids.ravel() for ids, _ in self._channels.balances])
        nodes = np.repeat([node for _, node in self._channels.balances], [b.size for b, _ in self._channels.balances])
        at = np.full(self.unit_count, -1, dtype=np.int64)
        at[self.unit_of[ids]] = np.arange(len(ids))
        for b in bundles:
            places = at[b.units]
            self._channels.tie(ids[places], ids[places[:1]], int(nodes[places[0]]))

    def unit(self, index: int) -> Unit:
        """Return a unit with all its slices."""
        slots = self.slots_of(index)
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
        if not found and unit in self._stuck:
            reason = "not as many channels of the other groups of a convolution can leave along with it"
            found = [Pin("OP216", self.slots_of(unit)[0][0], reason)]
        if not found and self.pinned[unit]:
            slots = ", ".join(f"{t} axis {a}" for t, a in self.slots_of(unit)[:3])
            reason = f"it is all there is of {slots}" if slots else "no weight holds it"
            found = [Pin("OP210", slots.partition(" axis")[0], reason)]
        return found

    def balanced(self, removed: NDArray[np.bool_]) -> bool:
        """Whether a removal, for every unit, takes as many channels of every group of each grouped convolution."""
        taken = (removed[self.unit_of[ids]].sum(axis=1) for ids, _ in self._channels.balances)
        return all((rows == rows[0]).all() for rows in taken)

    def consumers(self, tensor: str) -> list[str]:
        """Return the names of the nodes that read a tensor, in order.

        Of a weight that is transposed, cast or otherwise computed with first, those that read the result.
        """
        return self._readers.get(tensor, [])

    def path(self, start: Ids, goal: Ids) -> list[str]:
        """Return the nodes over which ids ``start`` are coupled to ids ``goal``, the shortest way."""
        left, right, nodes = self._ties(np.unique(self.unit_of[start]))
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

    @property
    def pieces(self) -> list[Ids]:
        """Ids on axes that were cut out of longer ones: no weights, but they must not become empty."""
        return self._channels.pieces

    @cached_property
    def summed(self) -> frozenset[tuple[str, int]]:
        """The weight axes, as (initializer, axis), that a contraction sums over: where channels are read."""
        summed = np.zeros(len(self.unit_of), dtype=bool)
        for ids in self._channels.summed:
            summed[ids] = True
        return frozenset(slot for slot, ids in self.slots.items() if summed[ids].any())

    def reasons(self) -> list[tuple[Ids, Pin]]:
        """Return the units, sorted, that each pin holds."""
        return [(np.unique(self.unit_of[ids]), pin) for ids, pin in self._channels.pins]

    def approximations(self) -> list[tuple[Ids, Approximation]]:
        """Return the units, sorted, that each approximation concerns."""
        return [(np.unique(self.unit_of[ids]), note) for ids, note in self._channels.approximations]

    def _ties(self, units: Ids) -> tuple[Ids, Ids, Ids]:
        """Return the ties within some units: two arrays of ids and one of node indices, each of shape (ties,)."""
        left, right, nodes, first = self._ties_by_unit
        mine = np.concatenate([np.arange(first[u], first[u + 1]) for u in units.tolist()])
        return left[mine], right[mine], nodes[mine]

    @cached_property
    def _ties_by_unit(self) -> tuple[Ids, Ids, Ids, Ids]:
        """All ties, ordered by unit, and where each unit's begin, shape (units + 1,)."""
        left, right, nodes = self._channels.edges()
        order = np.argsort(self.unit_of[left], kind="stable")
        first = np.searchsorted(self.unit_of[left][order], np.arange(self.unit_count + 1))
        return left[order], right[order], nodes[order], first

    @cached_property
    def _slot_names(self) -> list[tuple[str, int]]:
        return list(self.slots)

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        readers: dict[str, list[str]] = {}
        for node in reversed(self.proto.graph.node):
            moves = node.output[0] in self.values and self.values[node.output[0]].constant
            found = [r for o in node.output for r in readers.get(o, ())] if moves else [node.name]
            for name in dict.fromkeys(node.input):
                readers[name] = [*found, *readers.get(name, ())]
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
        unit, slot, count, lengths = self.incidence
        alone = np.zeros(self.unit_count, dtype=bool)
        alone[unit[count == lengths[slot]]] = True
        held = np.zeros(self.unit_count, dtype=bool)
        held[unit[slot < len(self.slots)]] = True
        return alone | ~held

    def slots_of(self, unit: int) -> list[tuple[str, int]]:
        """Return the weight axes, as (initializer, axis), that a unit has positions on."""
        units, slots, _, _ = self.incidence
        lo, hi = np.searchsorted(units, [unit, unit + 1])
        return [self._slot_names[s] for s in slots[lo:hi].tolist() if s < len(self._slot_names)]
