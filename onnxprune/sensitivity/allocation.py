"""Allocate a budget to the units that add the least output error for the cost that they save.

What a unit saves depends on what else is removed: a convolution between two narrow layers is cheap already. So units
are chosen by their savings in the full network, and then, a few times, by their savings in the network chosen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from onnxprune.channels.values import Mask
from onnxprune.cost.forecast import Forecast
from onnxprune.importance import Scores
from onnxprune.planning.budget import choose
from onnxprune.sensitivity.curves import Curve
from onnxprune.settings.planning import Constraints, PlanSettings, Targets
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

_ROUNDS = 4
# Least saving, as a share of the whole cost: keeps the ratio finite for units that save nothing.
_LEAST = 1e-9
# Smaller errors are rounding; larger ones mean a broken network.
_SMALLEST, _LARGEST = 1e-9, 1e9


def spend(
    graph: ChannelGraph,
    curves: Iterable[Curve],
    constraints: Constraints,
    *,
    ratio: float | None = None,
    target: Targets | None = None,
    whole: Mapping[str, int] | None = None,
) -> Mask:
    """Choose the units to remove so that the sum of errors is small.

    Args:
        graph: the traced network.
        curves: sensitivities of its groups; a group without a curve stays whole.
        constraints: limits on what may be removed.
        ratio: the share of all channels to remove.
        target: the limits to stay below.
        whole: the costs that limits are shares of, see `choose`.

    Returns:
        Whether each unit is removed, shape (units,).

    Raises:
        PlanError: as `choose` does.
    """
    by_group = {curve.group: curve for curve in curves}
    targets = PlanSettings(target=target).targets
    forecasts = [Forecast(graph, target.counted) for target in targets]
    removed = np.zeros(graph.unit_count, dtype=bool)
    limits = [t.limit((whole or {}).get(t.quantity) or f(removed)) for t, f in zip(targets, forecasts, strict=True)]
    found: list[tuple[float, int, Mask]] = []
    for round_ in range(_ROUNDS if targets else 1):
        saving = partial(_saving, removed=removed, forecasts=forecasts, limits=limits)
        scores = _scores(graph, by_group, saving)
        removed = choose(graph, scores, constraints, ratio=ratio, target=target, allocation="global", whole=whole)
        found.append((predicted_error(graph, by_group, removed), round_, removed))
    return min(found, key=lambda f: f[:2])[2]


def _scores(graph: ChannelGraph, curves: Mapping[int, Curve], saving: Callable[[Group], float]) -> list[Scores]:
    """Score every unit by the error that it adds per cost saved."""
    scores = []
    for group in graph.groups:
        own = np.full(len(group.units), np.nan)
        if group.index in curves:
            curve = curves[group.index]
            own[list(curve.order)] = slopes(curve) / saving(group)
        scores.append(own)
    return scores


def slopes(curve: Curve) -> Scores:
    """Return the error that each unit adds, in the order of removal, shape (units,).

    These never fall: they are the slopes of the curve's lower convex hull.
    """
    errors = errors_of(curve)
    hull = [0]
    for n in range(1, len(errors)):
        while len(hull) > 1 and _slope(errors, hull[-2], hull[-1]) >= _slope(errors, hull[-2], n):
            hull.pop()
        hull.append(n)
    each = np.concatenate([np.full(end - start, _slope(errors, start, end)) for start, end in pairwise(hull)])
    return np.asarray(each + 1e-12 * np.arange(len(each)))  # where slopes are equal, keep the criterion's order


def errors_of(curve: Curve) -> Scores:
    """Return the error with 0, 1, 2, ... units removed, shape (units + 1,).

    Errors between two points are interpolated as a power of the number of units. The exponent at either end is used
    beyond it; with one point only, it is 2.
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


def _saving(group: Group, removed: Mask, forecasts: Sequence[Forecast], limits: Sequence[float]) -> float:
    """Return the mean saving per unit of a group when half of them are removed, and all else stays as it is.

    Savings of several costs are added up, each relative to its limit.
    """
    if not forecasts:
        return 1.0
    whole = removed.copy()
    whole[group.units] = False
    half = whole.copy()
    gone = group.units[group.sets[: max(len(group.sets) // 2, 1)].ravel()]
    half[gone] = True
    saved = 0.0
    for forecast, limit in zip(forecasts, limits, strict=True):
        before = forecast(whole)
        saved += max((before - forecast(half)) / len(gone), _LEAST * max(before, 1)) / max(limit, 1)
    return saved


def added_errors(graph: ChannelGraph, curves: Iterable[Curve]) -> list[Scores]:
    """Score every unit by the error that it adds, regardless of its saving; NaN for groups without a curve."""
    return _scores(graph, {curve.group: curve for curve in curves}, lambda group: 1.0)


def predicted_error(graph: ChannelGraph, curves: Mapping[int, Curve], removed: Mask) -> float:
    """Return the sum of the errors of all groups, each pruned by itself.

    Args:
        graph: the traced network.
        curves: sensitivities of its groups, by the group's index.
        removed: whether each unit is removed, shape (units,).
    """
    gone = {i: int(removed[graph.groups[i].units].sum()) for i in curves}
    return sum(float(errors_of(curve)[gone[i]]) for i, curve in curves.items())
