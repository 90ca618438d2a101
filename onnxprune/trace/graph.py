"""The result of a trace: which channels leave together, which can't leave, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.ledger import Approximation, Channels, Pin
from onnxprune.channels.values import Ids, Value
from onnxprune.settings.planning import Policies
from onnxprune.shapes import Shapes
from onnxprune.shapes.runnable import Cut, RunnablePart, runnable_part
from onnxprune.trace.bundles import Bundle
from onnxprune.trace.groups import Group
from onnxprune.trace.states import State


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


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Channel dependencies of a model; made by `trace`.

    Attributes:
        proto: the normalized model that was traced.
        shapes: its concretized shapes.
        values: the tensors of the main graph, by name.
        policies: what is removed together; ``policies.state`` names all of the states.
        states: the states whose channels may leave.
        slots: ids on each axis of each initializer, by (initializer, axis).
        per_group: the number of groups of convolution weights that have separate channels for each group along the
            second axis, by (initializer, 1): there, ``slots`` holds the channels of all groups in a row.
        unit_of: the unit of every channel id, shape (ids,).
        pinned: for every unit whether it can't leave, shape (units,).
        stuck: units that can't leave because other groups of a convolution have no channels to match, ascending.
        bundles: units that leave in equal number of each group of a convolution.
        incidence: units, slots and their number of common positions, ordered by unit, and the lengths of all slots.
        groups: the removable units, by footprint.
        ledger: the ties, pins and approximations that the walk recorded.
    """

    proto: ModelProto
    shapes: Shapes
    values: Mapping[str, Value]
    policies: Policies
    states: tuple[State, ...]
    slots: Mapping[tuple[str, int], Ids]
    per_group: Mapping[tuple[str, int], int]
    unit_of: Ids
    pinned: NDArray[np.bool_]
    stuck: Ids
    bundles: tuple[Bundle, ...]
    incidence: tuple[Ids, Ids, Ids, Ids]
    ledger: Channels
    groups: tuple[Group, ...] = ()

    @cached_property
    def part(self) -> RunnablePart | None:
        """The part that ONNX Runtime's CPU provider runs; None if it doesn't refuse any operator or type."""
        return runnable_part(self.proto, self.shapes)

    @property
    def front(self) -> Cut | None:
        """The part that is computed from the model's inputs; None if that is all of it."""
        return None if self.part is None else self.part.front

    @property
    def unmade(self) -> frozenset[str]:
        """The tensors that can't be computed from the model's inputs, as ONNX Runtime refuses a node in front."""
        return frozenset() if self.front is None else self.front.unmade

    @property
    def unit_count(self) -> int:
        """The number of units."""
        return len(self.pinned)

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
        found = [pin for ids, pin in self.ledger.pins if (self.unit_of[ids] == unit).any()]
        if not found and unit in self.stuck:
            reason = "the other groups of a convolution have no channels that can leave with it"
            found = [Pin("OP216", self.slots_of(unit)[0][0], reason)]
        if not found and self.pinned[unit]:
            slots = ", ".join(f"{t} axis {a}" for t, a in self.slots_of(unit)[:3])
            reason = f"it is all there is of {slots}" if slots else "no weight holds it"
            found = [Pin("OP210", slots.partition(" axis")[0], reason)]
        return found

    def balanced(self, removed: NDArray[np.bool_]) -> bool:
        """Whether a removal, a flag for every unit, takes the same number from every group of a grouped convolution."""
        taken = (removed[self.unit_of[ids]].sum(axis=1) for ids, _ in self.ledger.balances)
        return all((rows == rows[0]).all() for rows in taken)

    def consumers(self, tensor: str) -> list[str]:
        """Return the names of the nodes that read a tensor, in order.

        For a weight that is transposed, cast or otherwise transformed first, these are the readers of the result.
        """
        return self._readers.get(tensor, [])

    def path(self, start: Ids, goal: Ids) -> list[str]:
        """Return the nodes on the shortest path that couples ids ``start`` to ids ``goal``."""
        left, right, nodes = self._ties(np.unique(self.unit_of[start]))
        goals = np.zeros(len(self.unit_of), dtype=bool)
        goals[goal] = True
        came = np.full(len(self.unit_of), -1, dtype=np.int64)  # the tie that reached an id
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

    @property
    def pieces(self) -> list[Ids]:
        """Ids on axes that were cut out of longer ones: not weights, but they must not become empty."""
        return self.ledger.pieces

    @cached_property
    def summed(self) -> frozenset[tuple[str, int]]:
        """The weight axes, as (initializer, axis), that a contraction sums over: where channels are read."""
        summed = np.zeros(len(self.unit_of), dtype=bool)
        for ids in self.ledger.summed:
            summed[ids] = True
        return frozenset(slot for slot, ids in self.slots.items() if summed[ids].any())

    def reasons(self) -> list[tuple[Ids, Pin]]:
        """Return the units, sorted, that each pin holds."""
        return [(np.unique(self.unit_of[ids]), pin) for ids, pin in self.ledger.pins]

    def approximations(self) -> list[tuple[Ids, Approximation]]:
        """Return the units, sorted, that each approximation concerns."""
        return [(np.unique(self.unit_of[ids]), note) for ids, note in self.ledger.approximations]

    def _ties(self, units: Ids) -> tuple[Ids, Ids, Ids]:
        """Return the ties within some units: two arrays of ids and one of node indices, each of shape (ties,)."""
        left, right, nodes, first = self._ties_by_unit
        mine = np.concatenate([np.arange(first[u], first[u + 1]) for u in units.tolist()])
        return left[mine], right[mine], nodes[mine]

    @cached_property
    def _ties_by_unit(self) -> tuple[Ids, Ids, Ids, Ids]:
        """All ties, ordered by unit, and the first tie of each unit, shape (units + 1,)."""
        left, right, nodes = self.ledger.edges()
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

    def slots_of(self, unit: int) -> list[tuple[str, int]]:
        """Return the weight axes, as (initializer, axis), that a unit has positions on."""
        units, slots, _, _ = self.incidence
        lo, hi = np.searchsorted(units, [unit, unit + 1])
        return [self._slot_names[s] for s in slots[lo:hi].tolist() if s < len(self._slot_names)]
