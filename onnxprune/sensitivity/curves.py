"""What each group's removal costs by itself: the output's error at several shares, readers refitted.

A group's least important units are taken out of the network, the layers that read them refitted in closed form, and the
network run to its outputs: the error says what the removal really does, however many layers a group's channels go
through. All else stays as it is.
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
from onnxprune.planning.budget import Constraints, eligible, ladder, multiples
from onnxprune.recover.parameters import set_parameters
from onnxprune.rewrite.masked import masked
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of a group's units at which it is measured; more than the constraints allow is the most that they allow."""

# Every so many batches one is held back to measure errors on; nothing is fitted to it.
_HELD_BACK = 4
# Where the criterion can tell nothing of a group.
_FALLBACK = "l2"
_NO_LIMITS = Constraints()


@dataclass(frozen=True, slots=True)
class Point:
    """What removing some units of a group does.

    Attributes:
        removed: how many leave, the least important ones.
        error: how much worse the outputs are.
    """

    removed: int
    error: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What removing ever more units of a group does.

    Attributes:
        group: the group's index.
        order: its units by importance, as positions in `Group.units`, the least important first.
        points: by number of units removed.
    """

    group: int
    order: tuple[int, ...]
    points: tuple[Point, ...]


class Judge(Protocol):
    """Tells how much worse a changed network is."""

    def __call__(self, model: ModelProto, since: int) -> float:
        """Judge a network that differs from the original nowhere in front of the node at position ``since``."""


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
    """Measure group after group, in the order in which the network computes them.

    Args:
        graph: the traced network.
        batches: gives inputs to refit readers on, anew at each call.
        judge: measures errors.
        criterion: says which units are the least important.
        constraints: limits on what may leave; groups that they exclude aren't measured.
        shares: shares of units at which to measure, rounded to counts that the constraints allow.
        seed: of whatever is drawn.
        known: curves that were measured before; they are not measured again, nor yielded.

    Raises:
        PlanError: there is no such criterion (OP308), or it failed (OP309); a pattern matches nothing (OP304).
        ModelError: the network can't be run on the inputs, or a weight isn't finite.
        UsageError: there are no inputs (OP604).
    """
    fixed, free = eligible(graph, constraints)
    since = {group.index: first_change(graph, group) for group in (*(g for g, _ in fixed), *free)}
    groups = [graph.groups[i] for i in sorted(since, key=since.__getitem__) if i not in (known or {})]
    for view in views(graph, seed=seed, batches=batches, groups=groups):
        group = view.group
        scores = _scores(view, criterion)
        counts = _counts(
            group, shares, ladder(len(group.sets), group.widths, constraints, multiples(graph, constraints))
        )
        if np.isnan(scores).any() or not counts:
            continue
        order = group.deal(scores).ravel()
        points = []
        for removed in counts:
            model = lesion(graph, group, order[:removed].tolist(), view.activations)
            points.append(Point(removed, judge(model, since[group.index])))
        yield Curve(group.index, tuple(order.tolist()), tuple(points))


def lesion(graph: ChannelGraph, group: Group, positions: Iterable[int], readings: Activations) -> ModelProto:
    """Return a network that no longer reads some units, their readers refitted; all shapes stay.

    Args:
        graph: the traced network.
        group: the group that the units are of.
        positions: which of its units, as positions in `Group.units`.
        readings: of the layers that read them.
    """
    units = group.units[list(positions)]
    removed = np.zeros(graph.unit_count, dtype=bool)
    removed[units] = True
    model = masked(PrunedGraph(graph, removed), readers_only=True)
    weights = Weights(model)
    for reading in readings:
        set_parameters(reading.layer, weights, reading.place, reading.without(units))
    return model


def first_change(graph: ChannelGraph, group: Group) -> int:
    """Return the position of the first node that computes something else when units of a group leave."""
    read = {tensor for tensor, axis in group.slots if (tensor, axis) in graph.summed}
    nodes = enumerate(graph.proto.graph.node)
    return next((i for i, n in nodes if n.name in group.statistics or not read.isdisjoint(n.input)), 0)


def share_out(batches: Batches) -> tuple[Batches, Batches]:
    """Divide inputs into those to fit on and those to measure errors on: every fourth batch; one alone is both."""

    def part(held: bool) -> Batches:
        def some() -> Iterator[Inputs]:
            taken = (b for i, b in zip(count(), batches()) if (i % _HELD_BACK == 0) == held)
            first = list(islice(taken, 1))
            yield from first or batches()
            yield from taken

        return some

    return part(False), part(True)


def _scores(view: GroupView, criterion: str) -> Scores:
    scores = raw_scores(criterion, view)
    return raw_scores(_FALLBACK, view) if np.isnan(scores).any() else scores


def _counts(group: Group, shares: Sequence[float], kept: Sequence[int]) -> list[int]:
    """Return how many units to remove at each share, of the counts of sets that may be kept."""
    sets, size = group.sets.shape
    allowed = [(sets - count) * size for count in kept]
    units = len(group.units)
    return sorted({min(allowed, key=lambda n: abs(n - share * units)) for share in shares}) if allowed else []
