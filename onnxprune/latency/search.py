"""From a model of the network's time to the state that keeps most within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.latency.model import NetworkModel
from onnxprune.latency.rungs import Choice, Numbers, State, total_value

_FAR = 10  # rounds from the whole network on
_NEAR = 10  # rounds around the best state, at most
_REACHES = (2, 2, 1, 1)  # rungs that each of their steps may go


def deepest(choices: Sequence[Choice]) -> State:
    """Return the state in which as much as is allowed has left."""
    return np.array([len(own) - 1 for own in choices], dtype=np.int64)


def search(model: NetworkModel, choices: Sequence[Choice], budget: float) -> State | None:
    """Find the state of most value whose predicted time is within a budget.

    A layer's time depends on two groups or more, those that it reads and those that it makes, so that the sum isn't
    separable. It is made so around a state: each choice costs what its layers take at each of its rungs, all others
    being as they are. The knapsack of that is solved exactly, and again around its solution; costs are averaged over
    the rounds, so that they come to rest. Around the best state that keeps the budget the costs are exact for single
    moves and good for small ones, so the last rounds look for better states a few rungs around it.

    Args:
        model: predicts the time of a state.
        choices: the groups' choices.
        budget: seconds.

    Returns:
        The state, or None if the model knows none within the budget.
    """
    best = deepest(choices)
    if model(best) > budget:
        return None
    rungs = [len(own) for own in choices]
    state = np.zeros(len(choices), dtype=np.int64)
    costs = model.around(state, rungs)
    for turn in range(_FAR):
        state = _solved(model, choices, state, costs, budget, reach=max(rungs))
        best = _better(model, choices, best, state, budget)
        fresh = model.around(state, rungs)
        costs = [old + (new - old) / (turn + 2) ** 0.5 for old, new in zip(costs, fresh, strict=True)]
    for _ in range(_NEAR):
        costs, limit, start = model.around(best, rungs), budget, best
        for reach in _REACHES:
            state = _solved(model, choices, start, costs, limit, reach=reach)
            best = _better(model, choices, best, state, budget)
            limit = min(budget, limit - max(0.0, model(state) - budget))  # by how much the sum of moves was wrong
        if best is start:
            break
    return best


def _solved(
    model: NetworkModel, choices: Sequence[Choice], state: State, costs: Sequence[Numbers], budget: float, *, reach: int
) -> State:
    """Solve the knapsack around a state, with rungs no further away than some; give the deepest if none fits."""
    # What the state takes beyond the choices' costs in it, negative, for layers count once for each of their choices.
    rest = model(state) - sum(float(c[r]) for c, r in zip(costs, state.tolist(), strict=True))
    low = np.maximum(state - reach, 0).tolist()
    high = [min(r + reach + 1, len(own)) for r, own in zip(state.tolist(), choices, strict=True)]
    found = solve(
        [c[a:b] for c, a, b in zip(costs, low, high, strict=True)],
        [own.values[a:b] for own, a, b in zip(choices, low, high, strict=True)],
        budget - rest,
    )
    return np.array(high) - 1 if found is None else np.array(low) + found


def _better(model: NetworkModel, choices: Sequence[Choice], best: State, state: State, budget: float) -> State:
    fits = model(state) <= budget
    return state if fits and total_value(choices, state) > total_value(choices, best) else best


_BINS = 2000


def solve(costs: Sequence[Numbers], values: Sequence[Numbers], budget: float) -> NDArray[np.int64] | None:
    """Choose one option of every set so that costs stay within a budget and values add up to the most.

    Dynamic programming over a budget cut into 2000 pieces (Dudzinski and Walukiewicz, Exact methods for the knapsack
    problem and its generalizations, EJOR 28, 1987). Costs are rounded up to whole pieces, so that the answer always
    keeps the budget; it is the best for a budget smaller by at most one piece for every set, which bounds what rounding
    loses.

    Args:
        costs: of every option, shape (options,) each; from which set the cheapest are taken may be negative.
        values: of every option.
        budget: the most that the costs may add up to.

    Returns:
        The option of every set, or None if even the cheapest cost more than the budget.
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
    state, left = np.zeros(len(costs), dtype=np.int64), _BINS
    for i in reversed(range(len(costs))):
        state[i] = taken[i, left]
        left -= int(pieces[i][state[i]])
    return state
