"""The knapsack against SciPy's mixed-integer solver, which shares nothing with it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.latency.search import solve


def sampled(seed: int, sets: int = 8) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Sample options whose value falls with their cost, and a budget between all and nothing."""
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.uniform(0, 1, rng.integers(1, 7)))[::-1] for _ in range(sets)]
    values = [np.sort(rng.uniform(0, 1, len(c)))[::-1] for c in costs]
    low, high = sum(c.min() for c in costs), sum(c.max() for c in costs)
    return costs, values, low + rng.uniform(0.1, 0.9) * (high - low)


def worth(values: list[np.ndarray], state: np.ndarray) -> float:
    return float(sum(v[i] for v, i in zip(values, state, strict=True)))


@pytest.mark.parametrize("seed", range(12))
def test_against_scipy(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    costs, values, budget = sampled(seed)
    sizes = [len(c) for c in costs]
    one_each = np.zeros((len(sizes), sum(sizes)))
    for row, end, size in zip(one_each, np.cumsum(sizes), sizes, strict=True):
        row[end - size : end] = 1

    def best(limit: float) -> float:
        found = optimize.milp(
            -np.concatenate(values),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(np.concatenate(costs), ub=limit),
            ],
            integrality=1,
            bounds=optimize.Bounds(0, 1),
        )
        assert found.success
        return -float(found.fun)

    state = solve(costs, values, budget)
    assert state is not None
    assert sum(c[i] for c, i in zip(costs, state, strict=True)) <= budget + 1e-9
    piece = (budget - sum(c.min() for c in costs)) / 2000
    assert best(budget - len(costs) * piece) - 1e-9 <= worth(values, state) <= best(budget) + 1e-9


def test_greedy_is_not_as_good() -> None:
    """The control: by value for its cost, one item leaves no room for the two that are worth more together."""
    costs = [np.array([0.6, 0.0]), np.array([0.5, 0.0]), np.array([0.5, 0.0])]
    values = [np.array([0.7, 0.0]), np.array([0.5, 0.0]), np.array([0.5, 0.0])]
    state = solve(costs, values, 1.0)
    assert state is not None and state.tolist() == [1, 0, 0]


def test_no_room() -> None:
    assert solve([np.array([2.0, 1.0])], [np.array([1.0, 0.0])], 0.5) is None


def test_exactly_the_least() -> None:
    state = solve([np.array([2.0, 1.0])], [np.array([1.0, 0.0])], 1.0)
    assert state is not None and state.tolist() == [1]


def test_room_for_all() -> None:
    costs, values, _ = sampled(3)
    state = solve(costs, values, 100.0)
    assert state is not None and worth(values, state) == pytest.approx(sum(v.max() for v in values))


def test_costs_below_zero() -> None:
    state = solve([np.array([-1.0, -2.0]), np.array([0.5, 0.0])], [np.array([1.0, 0.0]), np.array([0.9, 0.0])], -1.0)
    assert state is not None and state.tolist() == [0, 1]
