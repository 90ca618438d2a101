"""Where a budget costs least: units by the output error that they add for each multiply-accumulate saved.

What a unit saves depends on what else has left: a convolution between two narrow layers is cheap already. So units are
chosen by what they save in the full network, then again by what they save in the network chosen, a few times over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise

import numpy as np

from onnxprune.channels.values import Mask
from onnxprune.cost.forecast import Forecast
from onnxprune.importance import Scores
from onnxprune.planning.budget import Constraints, Target, choose
from onnxprune.sensitivity.curves import Curve
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

_ROUNDS = 4
# What saves nothing is dear, not free of charge: savings count at least as so small a share of the whole cost.
_LEAST = 1e-9
# Errors below are rounding, above the network is gone.
_SMALLEST, _LARGEST = 1e-9, 1e9


def spend(
    graph: ChannelGraph,
    curves: Iterable[Curve],
    constraints: Constraints,
    *,
    ratio: float | None = None,
    target: Target | None = None,
) -> Mask:
    """Choose the units to remove so that errors, added up, are small.

    Args:
        graph: the traced network.
        curves: of its groups; those without one stay whole.
        constraints: limits.
        ratio: the share of all channels to remove.
        target: the limit to stay below.

    Returns:
        For every unit whether it leaves, shape (units,).

    Raises:
        PlanError: as `choose` does.
    """
    by_group = {curve.group: curve for curve in curves}
    forecast = None if target is None else Forecast(graph, target.counted)
    removed = np.zeros(graph.unit_count, dtype=bool)
    found: list[tuple[float, int, Mask]] = []
    for round_ in range(1 if forecast is None else _ROUNDS):
        scores = _scores(graph, by_group, partial(_saving, removed=removed, forecast=forecast))
        removed = choose(graph, scores, constraints, ratio=ratio, target=target, allocation="global")
        found.append((predicted_error(graph, by_group, removed), round_, removed))
    return min(found, key=lambda f: f[:2])[2]


def _scores(graph: ChannelGraph, curves: Mapping[int, Curve], saving: Callable[[Group], float]) -> list[Scores]:
    """Score every unit by the error that it adds for what it saves."""
    scores = []
    for group in graph.groups:
        own = np.full(len(group.units), np.nan)
        if group.index in curves:
            curve = curves[group.index]
            own[list(curve.order)] = slopes(curve) / saving(group)
        scores.append(own)
    return scores


def slopes(curve: Curve) -> Scores:
    """Return what each unit adds to the error, in the order of their removal, shape (units,).

    It never falls: the curve is taken by its lower convex hull.
    """
    errors = errors_of(curve)
    hull = [0]
    for n in range(1, len(errors)):
        while len(hull) > 1 and _slope(errors, hull[-2], hull[-1]) >= _slope(errors, hull[-2], n):
            hull.pop()
        hull.append(n)
    each = np.concatenate([np.full(end - start, _slope(errors, start, end)) for start, end in pairwise(hull)])
    return np.asarray(each + 1e-12 * np.arange(len(each)))  # in the order of the criterion where the curve is straight


def errors_of(curve: Curve) -> Scores:
    """Return the error with 0, 1, 2, ... units removed, shape (units + 1,).

    Between points the error is taken to be a power of the number of units, as it is where units are chosen well; before
    the first and beyond the last point, with the exponent next to it, which is a square where there is one point only.
    """
    removed = np.array([point.removed for point in curve.points])
    errors = np.array([point.error for point in curve.points])
    x, y = np.log(removed), np.log(np.maximum.accumulate(np.clip(errors, _SMALLEST, _LARGEST)))
    powers = np.clip(np.diff(y) / np.diff(x), 1, None) if len(x) > 1 else np.array([2.0])
    counts = np.log(np.arange(1, len(curve.order) + 1))
    logs = np.interp(counts, x, y)
    logs = np.where(counts < x[0], y[0] + powers[0] * (counts - x[0]), logs)
    logs = np.where(counts > x[-1], y[-1] + powers[-1] * (counts - x[-1]), logs)
    return np.concatenate([[0.0], np.exp(logs)])


def _slope(errors: Scores, start: int, end: int) -> float:
    return float((errors[end] - errors[start]) / (end - start))


def _saving(group: Group, removed: Mask, forecast: Forecast | None) -> float:
    """Return what a unit of a group saves on average, between none and half of them gone, all else as it is."""
    if forecast is None:
        return 1.0
    whole = removed.copy()
    whole[group.units] = False
    half = whole.copy()
    gone = group.units[group.sets[: max(len(group.sets) // 2, 1)].ravel()]
    half[gone] = True
    before = forecast(whole)
    return max((before - forecast(half)) / len(gone), _LEAST * max(before, 1))


def added_errors(graph: ChannelGraph, curves: Iterable[Curve]) -> list[Scores]:
    """Score every unit by the error that it adds, whatever it saves; NaN for groups without a curve."""
    return _scores(graph, {curve.group: curve for curve in curves}, lambda group: 1.0)


def predicted_error(graph: ChannelGraph, curves: Mapping[int, Curve], removed: Mask) -> float:
    """Return the sum of the errors of all groups by themselves.

    Args:
        graph: the traced network.
        curves: of its groups, by the group's index.
        removed: for every unit whether it leaves, shape (units,).
    """
    gone = {i: int(removed[graph.groups[i].units].sum()) for i in curves}
    return sum(float(errors_of(curve)[gone[i]]) for i, curve in curves.items())
