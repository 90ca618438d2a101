"""The multiple-choice knapsack: one rung of every choice, the most value for a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

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
