"""Search for the configuration of most value within a time budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.latency.model import NetworkModel
from onnxprune.latency.widths import CandidateWidths, Config, Numbers, full_width, narrowest, total_value

_FAR = 10  # rounds from the original network on
_NEAR = 10  # rounds around the best configuration, at most
_REACHES = (2, 2, 1, 1)  # candidates that each of their steps may move by
_BINS = 2000  # of the knapsack's budget


def search(model: NetworkModel, candidates: Sequence[CandidateWidths], budget: float) -> Config | None:
    """Find the configuration of most value whose predicted time is within a budget.

    A layer's time depends on several groups, those that it reads and those that it makes, so the sum isn't separable.
    It is made separable around a configuration: a group's cost at each of its widths is the time of its layers, with
    all other groups unchanged. This knapsack is solved exactly, and again around its solution; costs are averaged over
    the rounds so that they converge. Around the best configuration within the budget, costs are exact for changes of
    one group and good for small changes, so the last rounds search its neighborhood. No width is chosen that is no
    faster than a wider one.

    Args:
        model: predicts the time of a configuration.
        candidates: the groups' candidate widths.
        budget: seconds.

    Returns:
        The configuration, or None if even the narrowest exceeds the budget.
    """
    best = narrowest(candidates)
    if model(best) > budget:
        return None
    counts = [len(own) for own in candidates]
    config = full_width(candidates)
    costs = model.around(config, counts)
    for turn in range(_FAR):
        config = _solved(model, candidates, config, costs, budget, reach=max(counts))
        best = _better(model, candidates, best, config, budget)
        fresh = model.around(config, counts)
        costs = [old + (new - old) / (turn + 2) ** 0.5 for old, new in zip(costs, fresh, strict=True)]
    for _ in range(_NEAR):
        costs, limit, start = model.around(best, counts), budget, best
        for reach in _REACHES:
            config = _solved(model, candidates, start, costs, limit, reach=reach)
            best = _better(model, candidates, best, config, budget)
            limit = min(budget, limit - max(0.0, model(config) - budget))  # the error of the separable sum
        if best is start:
            break
    return _widened(model, candidates, best)


def _widened(model: NetworkModel, candidates: Sequence[CandidateWidths], config: Config) -> Config:
    """Return a configuration without widths that save no time over a wider one of their group.

    Where channels don't fill the blocks that a provider computes at once, a narrower layer is no faster, or needs a
    change of layout. The knapsack sees costs rounded to its bins, and may take such a width for a faster one.
    """
    for group in range(len(candidates)):
        for width in range(int(config[group])):
            wider = config.copy()
            wider[group] = width
            if model(wider) <= model(config):
                config = wider
                break
    return config


def _solved(
    model: NetworkModel,
    candidates: Sequence[CandidateWidths],
    config: Config,
    costs: Sequence[Numbers],
    budget: float,
    *,
    reach: int,
) -> Config:
    """Solve the knapsack around a configuration, within a reach; return the narrowest there if none fits."""
    # The time beyond the groups' costs; negative, since a layer is counted once for each of its groups.
    rest = model(config) - sum(float(c[r]) for c, r in zip(costs, config.tolist(), strict=True))
    low = np.maximum(config - reach, 0).tolist()
    high = [min(r + reach + 1, len(own)) for r, own in zip(config.tolist(), candidates, strict=True)]
    found = solve(
        [c[a:b] for c, a, b in zip(costs, low, high, strict=True)],
        [own.values[a:b] for own, a, b in zip(candidates, low, high, strict=True)],
        budget - rest,
    )
    return np.array(high) - 1 if found is None else np.array(low) + found


def _better(
    model: NetworkModel, candidates: Sequence[CandidateWidths], best: Config, config: Config, budget: float
) -> Config:
    fits = model(config) <= budget
    return config if fits and total_value(candidates, config) > total_value(candidates, best) else best


def solve(costs: Sequence[Numbers], values: Sequence[Numbers], budget: float) -> NDArray[np.int64] | None:
    """Solve a multiple-choice knapsack: choose one option per set, maximizing total value within a budget of costs.

    Dynamic programming over a budget divided into 2000 bins (Dudzinski and Walukiewicz, Exact methods for the knapsack
    problem and its generalizations, EJOR 28, 1987). Costs are rounded up to bins, so the solution is within the budget,
    and optimal for a budget that is smaller by at most one bin per set.

    Args:
        costs: costs of each set's options, shape (options,) each; may be negative.
        values: values of each set's options, shape (options,) each.
        budget: maximum total cost.

    Returns:
        The chosen option of each set, or None if even the cheapest options exceed the budget.
    """
    least = [float(c.min()) for c in costs]
    room = budget - sum(least)
    if room < 0:
        return None
    pieces = [
        np.ceil((c - low) / room * _BINS - 1e-9) if room > 0 else np.where(c > low, np.inf, 0.0)
        for c, low in zip(costs, least, strict=True)
    ]
    best = np.zeros(_BINS + 1)
    taken = np.zeros((len(costs), _BINS + 1), dtype=np.int64)
    for i, (own, worth) in enumerate(zip(pieces, values, strict=True)):
        found = np.full(_BINS + 1, -np.inf)
        for option in np.argsort(own, kind="stable").tolist():
            if own[option] > _BINS:
                break
            start = int(own[option])
            with_it = np.full(_BINS + 1, -np.inf)
            with_it[start:] = best[: _BINS + 1 - start] + worth[option]
            better = with_it > found
            found[better] = with_it[better]
            taken[i, better] = option
        best = found
    config, left = np.zeros(len(costs), dtype=np.int64), _BINS
    for i in reversed(range(len(costs))):
        config[i] = taken[i, left]
        left -= int(pieces[i][config[i]])
    return config
