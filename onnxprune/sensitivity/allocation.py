"""Allocate a budget where it adds the least output error: to units by error per cost saved, and to residual blocks.

What a unit saves depends on what else is removed: a convolution between two narrow layers is cheap already. So units
are chosen by their savings in the full network, and then, a few times, by their savings in the network chosen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from onnxprune.channels.values import Mask
from onnxprune.cost.cost import cost
from onnxprune.cost.forecast import Forecast
from onnxprune.errors import PlanError
from onnxprune.importance import Scores
from onnxprune.model.stream import Batches
from onnxprune.planning.budget import choose
from onnxprune.planning.residual_blocks import rank_blocks, without_blocks
from onnxprune.rewrite.masked import masked
from onnxprune.sensitivity.curves import Curve, share_out
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.settings.planning import Constraints, PlanSettings, Target, Targets
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph

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


def spend_blocks(
    graph: ChannelGraph,
    targets: Sequence[Target],
    constraints: Constraints,
    batches: Batches,
    sensitivities: Callable[[ChannelGraph], Sequence[Curve]],
    whole: Mapping[str, int] | None = None,
) -> tuple[PrunedGraph, Sequence[Curve]]:
    """Choose the number of residual blocks that minimizes the output error at a target that channels make up.

    Blocks are removed one after the other, the least important first. Their joint error is measured and added to that
    of the channels, which is predicted from sensitivities. The search ends with the first block that doesn't pay.

    Args:
        graph: the whole model, traced.
        targets: the limits, on costs that are counted.
        constraints: limits on the channels to remove.
        batches: returns inputs to measure errors on.
        sensitivities: measures the sensitivities of a graph's groups.
        whole: the costs that limits are shares of, see `choose`; those of the whole model by default.

    Returns:
        The model without these blocks, and the sensitivities of its groups.

    Raises:
        PlanError: the target is out of reach, with blocks and without (OP301), nothing can be pruned (OP310), or the
            target is a latency (OP302).
        ModelError: a weight isn't finite, or the model can't be run.
    """
    whole = {**cost(PrunedGraph(graph)).totals(), **(whole or {})}
    judge = OutputError(graph.proto, share_out(batches)[1], graph.front)
    best: tuple[float, PrunedGraph, Sequence[Curve]] | None = None
    ranked, failure = rank_blocks(graph, batches), None
    for count in range(len(ranked) + 1):
        reduced = without_blocks(graph, ranked[:count])
        error = judge(masked(reduced)) if count else 0.0
        left = cost(reduced).totals()
        too_much = count > 0 and all(left[target.counted] < target.limit(whole[target.counted]) for target in targets)
        if too_much or (best is not None and error >= best[0]):
            break
        curves = sensitivities(reduced.graph)
        try:
            removed = spend(reduced.graph, curves, constraints, target=tuple(targets), whole=whole)
        except PlanError as out_of_reach:
            failure = failure or out_of_reach
            continue
        error += predicted_error(reduced.graph, {curve.group: curve for curve in curves}, removed)
        if best is not None and error >= best[0]:
            break
        best = error, reduced, curves
    if best is None:
        assert failure is not None
        raise failure
    return best[1:]
