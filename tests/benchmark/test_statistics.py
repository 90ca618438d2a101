"""Quantiles of known samples; the interval of a ratio: its coverage on known distributions, and SciPy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.benchmarking.rounds import ratio, summarize


def sampled(
    rng: np.random.Generator, median: float, *, rounds: int = 15, runs: int = 20, drift: np.ndarray | None = None
) -> list[np.ndarray]:
    drift = np.ones(rounds) if drift is None else drift
    return [median * drift[r] * np.exp(0.1 * rng.standard_normal(runs)) for r in range(rounds)]


class TestSummary:
    def test_quantiles(self) -> None:
        found = summarize([np.arange(1, 101) / 1e3, np.arange(101, 201) / 1e3])
        assert found.median == pytest.approx(0.1005)
        assert (found.p90, found.p99, found.best) == pytest.approx((0.180, 0.198, 0.001))
        assert (found.runs, found.rounds) == (200, 2)

    def test_few_runs_have_their_slowest_as_p99(self) -> None:
        assert summarize([np.array([1.0, 2.0]), np.array([9.0])]).p99 == 9.0


class TestRatio:
    def coverage(self, *, paired: bool) -> float:
        """Return how often a 95 % interval holds the true ratio on a machine that drifts."""
        held = 0
        for trial in range(200):
            rng = np.random.default_rng(trial)
            drift = np.exp(0.3 * np.cumsum(rng.standard_normal(15)))
            reference = sampled(rng, 2.0, drift=drift)
            other = sampled(rng, 1.0, drift=drift if paired else rng.permutation(drift))
            found = ratio(reference, other, seed=trial)
            held += found.low <= 2.0 <= found.high and found.high / found.low < 1.1
        return held / 200

    def test_covers_the_true_ratio_despite_drift(self) -> None:
        assert 0.9 <= self.coverage(paired=True) <= 0.99

    def test_without_taking_turns_it_could_not(self) -> None:
        assert self.coverage(paired=False) < 0.1

    def test_agrees_with_scipy(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        rng = np.random.default_rng(5)
        reference, other = sampled(rng, 3.0, rounds=40), sampled(rng, 2.0, rounds=40)
        found = ratio(reference, other)
        logs = np.log([np.median(a) / np.median(b) for a, b in zip(reference, other, strict=True)])
        wanted = stats.bootstrap((logs,), np.mean, confidence_level=0.95, method="BCa", rng=1).confidence_interval
        assert found.value == pytest.approx(np.exp(logs.mean()))
        assert found.low == pytest.approx(np.exp(wanted.low), abs=0.01)
        assert found.high == pytest.approx(np.exp(wanted.high), abs=0.01)

    def test_narrows_with_confidence(self) -> None:
        rng = np.random.default_rng(1)
        pair = sampled(rng, 2.0), sampled(rng, 1.0)
        wide, narrow = ratio(*pair, confidence=0.99), ratio(*pair, confidence=0.5)
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high

    def test_equal_times(self) -> None:
        rounds = [np.ones(3)] * 5
        found = ratio(rounds, rounds)
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
