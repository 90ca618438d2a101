"""What may be said of repeated timings: quantiles, and how sure a ratio of two models is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluation.intervals import Estimate

Seconds = NDArray[np.float64]
Rounds = Sequence[Seconds]

_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Summary:
    """Timings of one model, in seconds.

    Attributes:
        median: the median.
        p90: what nine of ten runs don't exceed.
        p99: what 99 of 100 runs don't exceed; the slowest run where there are few.
        mean: the mean.
        best: the fastest run.
        runs: how many runs were counted.
        rounds: in how many turns.
    """

    median: float
    p90: float
    p99: float
    mean: float
    best: float
    runs: int
    rounds: int


def summarize(rounds: Rounds) -> Summary:
    """Sum up the runs of a model, given by round, shape (runs,) each."""
    runs = np.concatenate(rounds)
    p90, p99 = np.quantile(runs, [0.9, 0.99], method="inverted_cdf")
    return Summary(
        median=float(np.median(runs)),
        p90=float(p90),
        p99=float(p99),
        mean=float(runs.mean()),
        best=float(runs.min()),
        runs=len(runs),
        rounds=len(rounds),
    )


def ratio(reference: Rounds, rounds: Rounds, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Estimate how many times as fast as a reference a model is.

    Both were measured in the same rounds, taking turns. What disturbs the machine for longer than a round disturbs
    both, so the ratio is taken within each round, of the two medians; the estimate is the mean of the ratios'
    logarithms. The interval is the studentized bootstrap's over rounds (B. Efron and R. Tibshirani, An introduction to
    the bootstrap, 1993, section 12.5): runs within a round aren't independent, rounds are, and there are too few of
    them for percentiles of the plain bootstrap to keep their coverage.

    Args:
        reference: seconds of the reference's runs by round, shape (runs,) each.
        rounds: the model's, of the same rounds; at least three.
        confidence: coverage of the interval.
        seed: of the resampling.
    """
    logs = np.log([np.median(a) / np.median(b) for a, b in zip(reference, rounds, strict=True)])
    center, error = logs.mean(), logs.std(ddof=1) / np.sqrt(len(logs))
    if not error > 0:
        return Estimate(*[float(np.exp(center))] * 3)
    chosen = np.sort(np.random.default_rng(seed).integers(len(logs), size=(_RESAMPLES, len(logs))))
    varied = np.count_nonzero(np.diff(chosen), axis=1) >= 2  # one or two rounds over and over tell no spread
    drawn = logs[chosen[varied]]
    t = (drawn.mean(axis=1) - center) / (drawn.std(axis=1, ddof=1) / np.sqrt(len(logs)))
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.exp(center)), float(np.exp(center - high * error)), float(np.exp(center - low * error)))
