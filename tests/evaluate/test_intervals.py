from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnxprune.evaluation.intervals import Estimate, paired_proportions, percentile, wilson
from onnxprune.evaluation.score import Resampler


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statist. Med. 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    estimate = wilson(successes, trials, 0.95)
    assert estimate.value == successes / trials
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.99]))
def test_wilson_agrees_with_scipy(trials: int, share: float, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs the dev extra: scipy")
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    estimate = wilson(successes, trials, confidence)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_paired_proportions_by_hand() -> None:
    # 12 gains and 3 losses in 100: p = 13/102 and 4/102, half = 1.96 sqrt((17/102 - (9/102)^2) / 102)
    estimate = paired_proportions(12, 3, 100, 0.95)
    half = 1.959964 * ((17 / 102 - (9 / 102) ** 2) / 102) ** 0.5
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.09, 9 / 102 - half, 9 / 102 + half))


def test_paired_proportions_turn_with_the_sides_and_never_collapse() -> None:
    a, b = paired_proportions(12, 3, 100, 0.9), paired_proportions(3, 12, 100, 0.9)
    assert (a.low, a.value, a.high) == pytest.approx((-b.high, -b.value, -b.low))
    none = paired_proportions(0, 0, 50, 0.95)
    assert none.value == 0 and none.low < -0.01 and none.high > 0.01


@pytest.mark.parametrize(("right", "gain", "loss"), [(0.8, 0.02, 0.08), (0.5, 0.2, 0.2), (0.97, 0.0, 0.02)])
def test_paired_proportions_cover_the_truth(right: float, gain: float, loss: float) -> None:
    rng = np.random.default_rng(0)
    n, hits = 200, 0
    for counts in rng.multinomial(n, [gain, loss, 1 - gain - loss], 2000):
        estimate = paired_proportions(counts[0], counts[1], n, 0.95)
        hits += estimate.low <= gain - loss <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.995


def test_nothing_measured_is_said() -> None:
    for estimate in (wilson(0, 0, 0.95), paired_proportions(0, 0, 0, 0.95), percentile(np.nan, np.array([]), 0.95)):
        assert np.isnan(estimate.value)


def test_percentiles_hold_the_value() -> None:
    estimate = percentile(50.0, np.arange(101.0), 0.9)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((5, 50, 95))
    assert percentile(1.0, np.arange(101.0), 0.9).low == 1.0
    assert percentile(5.0, np.append(np.arange(101.0), np.nan), 0.9).high == pytest.approx(95)


def bootstrap_interval(values: np.ndarray, seed: int, confidence: float) -> Estimate:
    weights = Resampler(250, seed).weights(len(values))
    return percentile(values.mean(), (weights.T @ values) / weights.sum(axis=0), confidence)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_resampling_covers_the_truth(draw: str) -> None:
    rng = np.random.default_rng(1)
    covered = {0.95: 0, 0.5: 0}
    for trial in range(300):
        values = rng.normal(1, 2, 200) if draw == "normal" else rng.exponential(1, 200)
        for confidence in covered:
            estimate = bootstrap_interval(values, trial, confidence)
            covered[confidence] += estimate.low <= 1 <= estimate.high
    assert 0.91 <= covered[0.95] / 300 <= 0.98
    assert 0.43 <= covered[0.5] / 300 <= 0.57  # the control: half as sure, half as often


def test_resampling_has_the_width_of_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs the dev extra: scipy")
    values = np.random.default_rng(2).exponential(1, 300)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    ours = bootstrap_interval(values, 0, 0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_weights_do_not_depend_on_how_samples_come() -> None:
    whole, parts = Resampler(50, 7), Resampler(50, 7)
    np.testing.assert_array_equal(whole.weights(12), np.concatenate([parts.weights(n) for n in (1, 4, 7)]))
    assert not np.array_equal(Resampler(50, 8).weights(12), Resampler(50, 7).weights(12))
