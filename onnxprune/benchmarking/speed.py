"""How much faster one model is than another, measured in turns within a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.benchmarking.rounds import compare, ratio, run_interleaved, summarize, warm_up
from onnxprune.benchmarking.session import TimedSession
from onnxprune.evaluation.intervals import Estimate

SECONDS = 0.5
"""Seconds of timing each model, at most."""

_ROUNDS = 3, 25
_TOGETHER = 15  # rounds of several models
_REPEATS = 3  # of the timing, at most, until the interval is narrow
_SURE = 0.05  # relative width of a narrow interval


@dataclass(frozen=True, slots=True)
class Speed:
    """The latency of the result and of the user's file, measured in turns.

    Attributes:
        speedup: how many times as fast the result is.
        before: seconds of a run of the user's file, the median.
        after: those of the result.
        provider: the execution provider's short name.
    """

    speedup: Estimate
    before: float
    after: float
    provider: str


def typical_seconds(subjects: Sequence[TimedSession]) -> list[float]:
    """Return the seconds of a run of each model, roughly."""
    found = [min(s.first, float(s.block(1)[0])) for s in subjects]
    if sum(found) < SECONDS / 10:
        found = [warm_up(subject, SECONDS).typical for subject in subjects]
    return found


def speedups(
    subjects: Sequence[TimedSession], *, seed: int = 0, progress: Callable[[float], None] | None = None
) -> list[Estimate]:
    """Return how many times as fast as the first each other model is, all timed in turns; see `speed_of`."""
    typical = [warm_up(subject, SECONDS).typical for subject in subjects]
    first, *others = run_interleaved(subjects, typical, rounds=_TOGETHER, seconds=SECONDS, progress=progress)
    return [ratio(first, own, seed=seed) for own in others]


def speed_of(
    before: TimedSession,
    after: TimedSession,
    typical: Sequence[float],
    provider: str,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> Speed:
    """Return how much faster a model is than another one.

    Args:
        before: the model to compare with.
        after: the other one.
        typical: approximate seconds of a run of each.
        provider: the execution provider's short name.
        seed: random seed of the interval.
        progress: called with the completed share, 0 to 1; it starts again with each repetition.
    """
    rounds = int(np.clip(4 * SECONDS / sum(typical), *_ROUNDS))
    pace: dict[str, Any] = {"rounds": rounds, "seconds": min(SECONDS, rounds * min(typical))}
    faster, *runs = compare(before, after, typical, **pace, sure=_SURE, repeats=_REPEATS, seed=seed, progress=progress)
    first, second = (summarize(own).median for own in runs)
    return Speed(faster, first, second, provider)
