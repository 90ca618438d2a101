"""Confidence intervals, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and its confidence interval.

    Attributes:
        value: the measured value; NaN if nothing could be measured.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def inverse(self) -> Estimate:
        """The same of 1 / value: of a speed-up, the relative time."""
        return Estimate(1 / self.value, 1 / self.high, 1 / self.low)


def wilson(successes: float, trials: float, confidence: float) -> Estimate:
    """Estimate a proportion by Wilson's score interval.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). Unlike the
    textbook interval, it keeps its coverage for few trials and near 0 and 1.
    """
    if not trials:
        return Estimate(float("nan"), 0.0, 1.0)
    z, share = _quantile(confidence), successes / trials
    spread = 1 + z**2 / trials
    center = (share + z**2 / (2 * trials)) / spread
    half = z * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / spread
    return Estimate(share, max(0.0, min(center - half, share)), min(1.0, max(center + half, share)))


def paired_proportions(gains: float, losses: float, trials: float, confidence: float) -> Estimate:
    """Estimate the difference of two proportions measured on the same samples, by the adjusted Wald interval.

    D. G. Bonett and R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data, J. Educ. Behav. Stat. 37 (2012). As in McNemar's test, only samples on which the two differ count. The
    interval has a width even if there are none.

    Args:
        gains: number of samples that only the first of the two gets right.
        losses: number that only the second gets right.
        trials: number of samples.
        confidence: coverage of the interval.
    """
    if not trials:
        return Estimate(float("nan"), -1.0, 1.0)
    value, total = (gains - losses) / trials, trials + 2
    up, down = (gains + 1) / total, (losses + 1) / total
    half = _quantile(confidence) * sqrt((up + down - (up - down) ** 2) / total)
    low, high = up - down - half, up - down + half
    return Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value)))


def percentile(value: float, resampled: Floats, confidence: float) -> Estimate:
    """Estimate a statistic by the percentiles of its bootstrap values.

    B. Efron, Bootstrap methods: another look at the jackknife, Ann. Statist. 7 (1979).
    """
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return Estimate(value, float("nan"), float("nan"))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
