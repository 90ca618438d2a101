"""Sensitivity curves: the output error when several shares of one group's units are removed.

The least important units of a group are masked, the layers that read them are refitted in closed form, and the network
is run to its outputs. All other groups stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

import numpy as np
from onnx import ModelProto

from onnxprune.importance import GroupView, Scores, views
from onnxprune.importance.activations import Activations
from onnxprune.importance.scoring import raw_scores
from onnxprune.model.stream import Batches, Inputs
from onnxprune.model.tensors import Weights
from onnxprune.planning.budget import allowed_counts, eligible, multiples
from onnxprune.recover.regression import set_parameters
from onnxprune.rewrite.masked import masked
from onnxprune.settings.planning import Constraints
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of a group's units to measure at; reduced to the most that the constraints allow."""

# One of every four batches is held back to measure errors on; nothing is fitted to it.
_HELD_BACK = 4
# Of these, the number of samples that errors of single groups are measured on.
_JUDGED = 32
# Criterion for groups that the chosen one can't score.
_FALLBACK = "l2"
_NO_LIMITS = Constraints()


@dataclass(frozen=True, slots=True)
class Point:
    """The error at one number of units removed from a group.

    Attributes:
        removed: the number of units removed, the least important ones.
        error: the output error, as the judge returns it.
    """

    removed: int
    error: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The sensitivity of the outputs to one group.

    Attributes:
        group: the group's index.
        order: its units by importance, as positions in `Group.units`, the least important first.
        points: errors by number of units removed, ascending.
    """

    group: int
    order: tuple[int, ...]
    points: tuple[Point, ...]


class Judge(Protocol):
    """Measures how much worse a changed network is."""

    def __call__(self, model: ModelProto, since: int) -> float:
        """Return the error of a network that equals the original before the node at position ``since``."""

    def advance(self, since: int) -> None:
        """Prepare for networks that equal the original before a node."""


def measure(
    graph: ChannelGraph,
    batches: Batches,
    judge: Judge,
    *,
    criterion: str = "obs",
    constraints: Constraints = _NO_LIMITS,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    known: Mapping[int, Curve] | None = None,
) -> Iterator[Curve]:
    """Measure one group after the other, in the order in which the network computes them.

    Args:
        graph: the traced network.
        batches: returns inputs to refit readers on.
        judge: measures errors.
        criterion: ranks units by importance.
        constraints: limits on what may be removed; groups that they exclude aren't measured.
        shares: shares of units to measure at, rounded to counts that the constraints allow.
        seed: of all random choices.
        known: curves from before, by group; these groups are neither measured nor yielded. What is held of the network
            moves on as if they were measured, since it affects the rounding of what follows.

    Raises:
        PlanError: there is no such criterion (OP308), or it failed (OP309); a pattern matches nothing (OP304).
        ModelError: the network can't be run on the inputs, or a weight isn't finite.
        UsageError: there are no inputs (OP604).
    """
    fixed, free = eligible(graph, constraints)
    since = {group.index: first_change(graph, group) for group in (*(g for g, _ in fixed), *free)}
    known = known or {}
    groups = [graph.groups[i] for i in sorted(since, key=since.__getitem__)]
    if known.keys() >= since.keys():
        return
    for view in views(graph, seed=seed, batches=batches, groups=groups):
        group = view.group
        if group.index in known:
            judge.advance(since[group.index])
            continue
        scores = _scores(view, criterion)
        counts = _counts(
            group, shares, allowed_counts(len(group.sets), group.widths, constraints, multiples(graph, constraints))
        )
        if np.isnan(scores).any() or not counts:
            continue
        order = group.deal(scores).ravel()
        points = []
        for removed in counts:
            model = ablated(graph, group, order[:removed].tolist(), view.activations)
            points.append(Point(removed, judge(model, since[group.index])))
        yield Curve(group.index, tuple(order.tolist()), tuple(points))


def ablated(graph: ChannelGraph, group: Group, positions: Iterable[int], activations: Activations) -> ModelProto:
    """Return a network that doesn't read some units, with the layers that read them refitted; all shapes stay.

    Args:
        graph: the traced network.
        group: the units' group.
        positions: the units, as positions in `Group.units`.
        activations: statistics of the layers that read them; without any, nothing is refitted.
    """
    units = group.units[list(positions)]
    removed = np.zeros(graph.unit_count, dtype=bool)
    removed[units] = True
    model = masked(PrunedGraph(graph, removed), readers_only=True)
    weights = Weights(model)
    for reader in activations:
        set_parameters(reader.layer, weights, reader.place, reader.without(units))
    return model


def first_change(graph: ChannelGraph, group: Group) -> int:
    """Return the position of the first node whose result changes when units of a group are removed."""
    read = {tensor for tensor, axis in group.slots if (tensor, axis) in graph.summed}
    nodes = enumerate(graph.proto.graph.node)
    return next((i for i, n in nodes if n.name in group.statistics or not read.isdisjoint(n.input)), 0)


def carried(curves: Iterable[Curve], before: ChannelGraph, after: ChannelGraph) -> list[Curve] | None:
    """Return the curves of a network for a changed one; None if the units of one have no match there.

    Units are matched by the tensors that both networks compute, and that have the same channels in both.

    Args:
        curves: the sensitivities of the groups of a network.
        before: this network, traced.
        after: the changed network.
    """
    match = np.full(before.unit_count, -1)
    for name, value in before.values.items():
        other = after.values.get(name)
        for one, two in zip(value.factors, () if other is None else other.factors, strict=False):
            if one.axes == two.axes and one.ids.shape == two.ids.shape:
                match[before.unit_of[one.ids]] = after.unit_of[two.ids]
    places = {int(unit): (group, i) for group in after.groups for i, unit in enumerate(group.units)}
    found = []
    for curve in curves:
        units = match[before.groups[curve.group].units]
        at = [places.get(int(unit)) for unit in units]
        group = at[0][0] if at[0] is not None else None
        if group is None or len(group.units) != len(units) or any(p is None or p[0] is not group for p in at):
            return None
        order = tuple(places[int(units[i])][1] for i in curve.order)
        if len(set(order)) != len(order):
            return None
        found.append(Curve(group.index, order, curve.points))
    return found


def share_out(batches: Batches) -> tuple[Batches, Batches]:
    """Split inputs into batches to fit on and, every fourth, batches to measure errors on; a single one is both."""

    def part(held: bool) -> Batches:
        def some() -> Iterator[Inputs]:
            taken = (b for i, b in zip(count(), batches()) if (i % _HELD_BACK == 0) == held)
            first = list(islice(taken, 1))
            yield from first or batches()
            yield from taken

        return some

    return part(False), part(True)


def few(batches: Batches) -> Batches:
    """Return the first batches, as many as the errors of single groups need: 32 samples.

    More take their time for each group and each share, and the plans that follow are no better.
    """

    def first() -> Iterator[Inputs]:
        samples = 0
        for batch in batches():
            yield batch
            samples += max((len(value) for value in batch.values() if np.ndim(value)), default=1)
            if samples >= _JUDGED:
                return

    return first


def _scores(view: GroupView, criterion: str) -> Scores:
    scores = raw_scores(criterion, view)
    return raw_scores(_FALLBACK, view) if np.isnan(scores).any() else scores


def _counts(group: Group, shares: Sequence[float], kept: Sequence[int]) -> list[int]:
    """Return the numbers of units to remove: for each share the nearest that leaves an allowed count of sets."""
    sets, size = group.sets.shape
    allowed = [(sets - count) * size for count in kept]
    units = len(group.units)
    return sorted({min(allowed, key=lambda n: abs(n - share * units)) for share in shares}) if allowed else []
