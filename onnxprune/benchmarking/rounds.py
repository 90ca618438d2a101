"""Interleaved timing of several models (A, B, A, B, ...), and statistics of the timings.

Interleaving makes background load affect all models equally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

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
        p90: the 90th percentile.
        p99: the 99th percentile; the slowest run if there are few.
        mean: the mean.
        best: the fastest run.
        runs: number of runs.
        rounds: number of rounds.
    """

    median: float
    p90: float
    p99: float
    mean: float
    best: float
    runs: int
    rounds: int


def summarize(rounds: Rounds) -> Summary:
    """Summarize a model's runs, given by round, shape (runs,) each."""
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
    """Estimate a model's speed-up over a reference.

    Both were measured in the same interleaved rounds. Disturbances longer than a round affect both, so the ratio of the
    two medians is taken within each round; the estimate is the geometric mean of the ratios. The interval is the
    studentized bootstrap's over rounds (B. Efron and R. Tibshirani, An introduction to the bootstrap, 1993, section
    12.5): rounds are independent, unlike runs within a round, and too few for the percentile bootstrap to keep its
    coverage.

    Args:
        reference: seconds of the reference's runs by round, shape (runs,) each.
        rounds: the model's runs in the same rounds; at least three.
        confidence: coverage of the interval.
        seed: random seed of the bootstrap.
    """
    logs = np.log([np.median(a) / np.median(b) for a, b in zip(reference, rounds, strict=True)])
    center, error = logs.mean(), logs.std(ddof=1) / np.sqrt(len(logs))
    if not error > 0:
        return Estimate(*[float(np.exp(center))] * 3)
    chosen = np.sort(np.random.default_rng(seed).integers(len(logs), size=(_RESAMPLES, len(logs))))
    varied = np.count_nonzero(np.diff(chosen), axis=1) >= 2  # one or two distinct rounds have no meaningful deviation
    sampled = logs[chosen[varied]]
    t = (sampled.mean(axis=1) - center) / (sampled.std(axis=1, ddof=1) / np.sqrt(len(logs)))
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.exp(center)), float(np.exp(center - high * error)), float(np.exp(center - low * error)))


def compare(
    reference: Subject,
    subject: Subject,
    typical: Sequence[float],
    *,
    rounds: int,
    seconds: float,
    sure: float,
    repeats: int,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[Estimate, Rounds, Rounds]:
    """Time two models in turns, until the interval of the speed-up is narrow.

    Args:
        reference: the model to compare with.
        subject: the other one.
        typical: approximate seconds of a run of each.
        rounds: minimum number of rounds of a repetition.
        seconds: minimum total time of each model in a repetition.
        sure: the relative width of the interval at which it is narrow.
        repeats: the most repetitions.
        seed: random seed of the bootstrap.
        progress: called with the completed share of a repetition, 0 to 1.

    Returns:
        The speed-up of the second over the first, and the seconds of the runs of both by round.
    """
    first, second = list[Seconds](), list[Seconds]()
    for _ in range(repeats):
        more = run_interleaved([reference, subject], typical, rounds=rounds, seconds=seconds, progress=progress)
        first += more[0]
        second += more[1]
        found = ratio(first, second, seed=seed)
        if found.high - found.low < sure * found.value:
            break
    return found, first, second


_WINDOW = 5  # runs whose median is compared with that of the next ones
_SETTLED = 0.03  # relative change of the median below which a model is warm
_MOST = 5000  # runs in a round, enough for all reported quantiles


class Subject(Protocol):
    """Something that can be run repeatedly."""

    def block(self, runs: int) -> Seconds:
        """Run it a number of times in a row; return the seconds of each run, shape (runs,)."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The result of warming up.

    Attributes:
        runs: number of runs.
        settled: whether the median became stable within the time limit.
        typical: median seconds of the last runs.
    """

    runs: int
    settled: bool
    typical: float


def warm_up(subject: Subject, limit: float) -> WarmUp:
    """Run something until the median of its last runs equals that of the runs before, within 3%.

    The compared windows grow with the number of runs, so that a slow drift isn't mistaken for a stable median.

    Args:
        subject: what to run.
        limit: time limit in seconds.
    """
    seen = subject.block(2 * _WINDOW)
    while True:
        half = max(_WINDOW, len(seen) // 4)
        late, early = np.median(seen[-half:]), np.median(seen[-2 * half : -half])
        settled = bool(abs(late / early - 1) < _SETTLED)
        if settled or seen.sum() >= limit:
            return WarmUp(len(seen), settled, float(late))
        seen = np.concatenate([seen, subject.block(_WINDOW)])


def run_interleaved(
    subjects: Sequence[Subject],
    typical: Sequence[float],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> list[Rounds]:
    """Time several models in interleaved rounds.

    The first run of a round finds the caches filled by another model. It is discarded if the round has several runs.

    Args:
        subjects: what to run, warmed up.
        typical: approximate seconds of a run of each.
        rounds: minimum number of rounds.
        seconds: minimum total time of each subject.
        progress: called with the completed share, 0 to 1.

    Returns:
        The seconds of each subject's runs by round, shape (runs,) each.
    """
    sizes = [min(_MOST, max(1, ceil(seconds / rounds / t))) for t in typical]
    found: list[list[Seconds]] = [[] for _ in subjects]
    spent, done = [0.0] * len(subjects), 0
    while done < rounds or min(spent) < seconds:
        for i, subject in enumerate(subjects):
            runs = subject.block(sizes[i] + 1 if sizes[i] > 1 else 1)
            found[i].append(runs[1:] if len(runs) > 1 else runs)
            spent[i] += float(runs.sum())
        done += 1
        if progress is not None:
            progress(min(1.0, done / rounds, min(spent) / seconds))
    return [list(f) for f in found]
