"""Solve the ledger of a walk for units and groups: which channels leave together, and which can't leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.ledger import Approximation, Channels
from onnxprune.channels.values import Ids, Value
from onnxprune.model.bodies import is_body_input
from onnxprune.settings.planning import Policies
from onnxprune.shapes import Shapes
from onnxprune.trace.bundles import Bundle, bundle
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.states import State


def solve(
    proto: ModelProto,
    shapes: Shapes,
    values: Mapping[str, Value],
    ledger: Channels,
    policies: Policies,
    states: tuple[State, ...],
) -> ChannelGraph:
    """Solve the ties of a walk.

    Args:
        proto: the normalized model.
        shapes: its concretized shapes.
        values: the tensors, by name.
        ledger: the ledger of the walk.
        policies: what is removed together.
        states: the states whose channels may leave.
    """
    initializers = [t.name for t in proto.graph.initializer if t.name in values]
    slots = {(name, f.axes[0]): f.ids for name in initializers for f in values[name].factors}
    slots |= {(name, 1): ids.ravel() for name, ids in ledger.ids_by_group.items()}

    def solved() -> ChannelGraph:
        roots = ledger.solve()
        first = roots == np.arange(len(roots))  # of every component, the smallest id
        unit_of: Ids = (np.cumsum(first) - 1)[roots]
        pinned: NDArray[np.bool_] = np.zeros(int(np.count_nonzero(first)), dtype=bool)
        for ids, _ in ledger.pins:
            pinned[unit_of[ids]] = True
        incidence = _incidence([*slots.values(), *ledger.pieces], unit_of)
        pinned |= _alone(incidence, len(slots), len(pinned))
        bundles, stuck = bundle(
            [unit_of[ids] for ids, _ in ledger.balances], pinned, footprints(incidence, len(pinned))
        )
        per_group = {(name, 1): len(ids) for name, ids in ledger.ids_by_group.items()}
        return ChannelGraph(
            *(proto, shapes, values, policies, states, slots, per_group),
            *(unit_of, pinned, stuck, bundles, incidence, ledger),
        )

    graph = solved()
    footprint = footprints(graph.incidence, graph.unit_count)
    if uneven := [b for b in graph.bundles if (footprint[b.units] != footprint[b.units[0]]).any()]:
        _join(graph, uneven)
        graph = solved()
    graph.pinned[graph.stuck] = True
    return replace(graph, groups=_groups(graph))


def _join(graph: ChannelGraph, bundles: list[Bundle]) -> None:
    """Tie the units of each bundle whose units are in different slots: there is no choice among them."""
    balances = graph.ledger.balances
    ids = np.concatenate([ids.ravel() for ids, _ in balances])
    nodes = np.repeat([node for _, node in balances], [b.size for b, _ in balances])
    at = np.full(graph.unit_count, -1, dtype=np.int64)
    at[graph.unit_of[ids]] = np.arange(len(ids))
    for b in bundles:
        places = at[b.units]
        graph.ledger.tie(ids[places], ids[places[:1]], int(nodes[places[0]]))


def _incidence(arrays: list[Ids], unit_of: Ids) -> tuple[Ids, Ids, Ids, Ids]:
    """Return units, slots and their number of common positions, ordered by unit, and the lengths of all slots.

    Pieces of axes come after the weights' slots: they aren't weights, but distinguish units and must not become empty.
    """
    lengths = np.array([a.size for a in arrays], dtype=np.int64)
    if not arrays:
        return (np.empty(0, dtype=np.int64),) * 4
    slot = np.repeat(np.arange(len(arrays)), lengths)
    unit = unit_of[np.concatenate([a.ravel() for a in arrays])]
    keys, counts = np.unique(unit * len(arrays) + slot, return_counts=True)
    return keys // len(arrays), keys % len(arrays), counts, lengths


def _alone(incidence: tuple[Ids, Ids, Ids, Ids], slots: int, units: int) -> NDArray[np.bool_]:
    """Return which units fill an axis alone or aren't on any weight, shape (units,)."""
    unit, slot, count, lengths = incidence
    alone, on_weight = np.zeros(units, dtype=bool), np.zeros(units, dtype=bool)
    alone[unit[count == lengths[slot]]] = True
    on_weight[unit[slot < slots]] = True
    return alone | ~on_weight


def _groups(graph: ChannelGraph) -> tuple[Group, ...]:
    """Return the groups of a solved graph's removable units, in the order of their first channels."""
    unit, slot, count, _ = graph.incidence
    begin = np.searchsorted(unit, np.arange(graph.unit_count + 1)).tolist()  # the first slot of each unit
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
        single = sets.shape[1] == 1  # common case; these units are in order
        units = sets[:, 0] if single else np.sort(sets, axis=None)
        first = sets[0].tolist()
        places: dict[int, list[int]] = {}  # by slot, the number of positions of each unit of the first set
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


def footprints(incidence: tuple[Ids, Ids, Ids, Ids], units: int) -> NDArray[np.uint64]:
    """Return a hash of each unit's slots and its number of positions there, shape (units,).

    The hash is a sum of random numbers, one for each slot.
    """
    unit, slot, count, lengths = incidence
    random = np.random.default_rng(0).integers(1, 2**63, size=len(lengths), dtype=np.uint64)
    footprint = np.zeros(units, dtype=np.uint64)
    np.add.at(footprint, unit, random[slot] * count.astype(np.uint64))
    return footprint


def _members(graph: ChannelGraph) -> Iterator[tuple[Ids, Ids]]:
    """Yield the units of each group, a row for units that leave together, and their kinds."""
    footprint = footprints(graph.incidence, graph.unit_count)
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
    """Return the units in the output of each contraction, by the node's name."""
    made = {}
    for node in graph.proto.graph.node:
        value = graph.values.get(node.output[0])
        operands = (graph.values.get(name) for name in node.input[1:])
        if (
            value is not None
            and not is_body_input(node)
            and any(v is not None and len(v.factors) > 1 for v in operands)
        ):
            made[node.name] = {u for f in value.factors for u in graph.unit_of[f.ids].ravel().tolist()}
    return made
