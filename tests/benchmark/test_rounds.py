"""Warming up and taking turns, on synthetic timers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.benchmarking.rounds import ratio, run_interleaved, warm_up
from tests.benchmark.timers import Clock, Synthetic


class TestWarmUp:
    def test_goes_on_until_the_median_settles(self) -> None:
        slow_start = Synthetic(0.01, Clock(), spread=0.001, cold=lambda run: 1 + 4 * 0.9**run)
        found = warm_up(slow_start, limit=10.0)
        assert found.settled and found.runs > 30
        assert found.typical == pytest.approx(0.01, rel=0.1)

    def test_is_short_where_nothing_changes(self) -> None:
        assert warm_up(Synthetic(0.01, Clock(), spread=0.001), limit=10.0).runs == 10

    def test_gives_up_on_what_never_settles(self) -> None:
        found = warm_up(Synthetic(0.01, Clock(), spread=0.0, cold=lambda run: 1.02**run), limit=1.0)
        assert not found.settled


class TestTurns:
    def test_interleaves(self) -> None:
        clock = Clock()
        a, b = Synthetic(0.01, clock), Synthetic(0.02, clock)
        found = run_interleaved([a, b], [0.01, 0.02], rounds=4, seconds=0.4)
        assert clock.log == [a, b] * (len(clock.log) // 2)
        assert [len(rounds) for rounds in found] == [len(clock.log) // 2] * 2

    def test_runs_for_the_time_that_was_asked(self) -> None:
        clock = Clock()
        a = Synthetic(0.01, clock)
        run_interleaved([a], [0.02], rounds=5, seconds=3.0)  # it is faster than was thought
        assert clock.now >= 3.0

    def test_the_first_run_of_a_turn_is_not_counted(self) -> None:
        clock = Clock()
        other = Synthetic(0.01, clock)

        class Cold(Synthetic):
            def block(self, runs: int) -> np.ndarray:
                times = super().block(runs)
                times[0] *= 100
                return times

        found = run_interleaved([Cold(0.01, clock, spread=0.0), other], [0.01, 0.01], rounds=3, seconds=0.3)
        assert max(float(r.max()) for r in found[0]) == pytest.approx(0.01)

    def test_a_disturbance_hits_both(self) -> None:
        """The machine is three times as slow in the second half: the ratio doesn't notice, the medians do."""
        clock = Clock(lambda now: 1.0 if now < 3 else 3.0)
        pair = [Synthetic(0.02, clock, seed=1), Synthetic(0.01, clock, seed=2)]
        first, second = run_interleaved(pair, [0.02, 0.01], rounds=20, seconds=4.0)
        found = ratio(first, second)
        assert found.value == pytest.approx(2.0, rel=0.05)
        one_after_the_other = np.median(np.concatenate(first[:4])) / np.median(np.concatenate(second[-4:]))
        assert one_after_the_other < 1.0

    def test_tells_how_far_it_is(self) -> None:
        seen: list[float] = []
        run_interleaved([Synthetic(0.01, Clock())], [0.01], rounds=4, seconds=0.1, progress=seen.append)
        assert seen == sorted(seen) and seen[-1] == 1.0
