"""Subjects whose times are known: sampled from a distribution, times the disturbances of a machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class Synthetic:
    """Runs in times sampled from a log-normal distribution, times the current disturbance of the machine."""

    def __init__(
        self,
        median: float,
        clock: Clock,
        *,
        spread: float = 0.05,
        cold: Callable[[int], float] = lambda run: 1.0,
        seed: int = 0,
    ) -> None:
        self.median, self.clock, self.spread, self.cold = median, clock, spread, cold
        self.rng = np.random.default_rng(seed)
        self.runs = 0
        self.blocks: list[int] = []

    def block(self, runs: int) -> NDArray[np.float64]:
        self.clock.log.append(self)
        self.blocks.append(runs)
        times = np.empty(runs)
        for i in range(runs):
            noise = float(np.exp(self.spread * self.rng.standard_normal()))
            times[i] = self.median * noise * self.cold(self.runs) * self.clock.disturbance()
            self.clock.now += times[i]
            self.runs += 1
        return times


class Clock:
    """The time that synthetic subjects share, and what disturbs the machine as it goes by."""

    def __init__(self, disturbance: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.log: list[Synthetic] = []
        self._disturbance = disturbance

    def disturbance(self) -> float:
        return self._disturbance(self.now)
