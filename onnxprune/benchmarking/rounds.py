"""Taking turns: several models are timed A, B, A, B, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np

from onnxprune.benchmarking.statistics import Rounds, Seconds

_WINDOW = 5  # runs, the medians of which are held against each other
_SETTLED = 0.03  # relative change of the median below which a model is warm
_MOST = 5000  # runs in a round: enough for any quantile that is told


class Subject(Protocol):
    """Something that can be run again and again."""

    def block(self, runs: int) -> Seconds:
        """Run it so many times in a row; seconds of each run, shape (runs,)."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How warming up went.

    Attributes:
        runs: how many runs it took.
        settled: whether the median came to rest before time was up.
        typical: seconds of a run at the end.
    """

    runs: int
    settled: bool
    typical: float


def warm_up(subject: Subject, limit: float) -> WarmUp:
    """Run something until the median of its last runs is that of the ones before, up to 3 %.

    The windows that are compared grow with what has been run, so that a slow drift isn't mistaken for rest.

    Args:
        subject: what to run.
        limit: seconds after which to give up.
    """
    seen = subject.block(2 * _WINDOW)
    while True:
        half = max(_WINDOW, len(seen) // 4)
        late, early = np.median(seen[-half:]), np.median(seen[-2 * half : -half])
        settled = bool(abs(late / early - 1) < _SETTLED)
        if settled or seen.sum() >= limit:
            return WarmUp(len(seen), settled, float(late))
        seen = np.concatenate([seen, subject.block(_WINDOW)])


def take_turns(
    subjects: Sequence[Subject],
    typical: Sequence[float],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> list[Rounds]:
    """Run several models in turns.

    The first run of a turn finds the caches full of another model's weights; where a turn has several runs, it isn't
    counted.

    Args:
        subjects: what to run, warmed up.
        typical: seconds of a run of each, about.
        rounds: how many turns each takes, at least.
        seconds: how long each is run in all, at least.
        progress: is called with the share that is done.

    Returns:
        For every subject its counted runs by round.
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
