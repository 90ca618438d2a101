"""Which of the points that were tried is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.workflow.axes import Points, Trial

SMALL = Moves(resolution={"image": (160, 160)})
ALONE, WITH_CHANNELS = PrunePlan("0" * 64, removed={}), PrunePlan("0" * 64, removed={"w": {0: (1,)}})


def trial(errors: Sequence[float], plan: PrunePlan = WITH_CHANNELS) -> Trial:
    return Trial(SMALL, plan, tuple(errors))


def test_weights_that_were_fitted_are_told() -> None:
    assert trial([1.0]).fitted
    assert not trial([1.0], ALONE).fitted
    assert Trial(Moves(ranks={"w": 3}), ALONE, (1.0,)).fitted


def test_a_difference_within_its_standard_error_is_none() -> None:
    """The difference is of the same inputs: what all errors have in common doesn't count."""
    rng = np.random.default_rng(0)
    common, noise = 5 * rng.random(64), rng.standard_normal(64)
    noise -= noise.mean()
    best = trial(common)
    error = noise.std() / 8
    assert trial(common + noise + 0.9 * error).as_good_as(best)
    assert not trial(common + noise + 1.1 * error).as_good_as(best)
    assert not trial(common + 0.01).as_good_as(best)  # small, but the same for all inputs
    assert best.as_good_as(best)


@pytest.mark.parametrize(("worse", "taken"), [(0.01, ALONE), (1.0, WITH_CHANNELS)])
def test_nothing_fitted_is_taken_unless_something_is_surely_better(worse: float, taken: PrunePlan) -> None:
    errors = np.arange(16.0)
    points = Points.__new__(Points)
    points.done = [trial(errors), trial(errors + worse + np.resize([1.0, -1.0], 16), ALONE), trial(errors + 0.001)]
    points._judge = cast(Any, SimpleNamespace(measures="divergence"))
    assert replace(points.chosen(), settings={}) == taken


@pytest.mark.parametrize("errors", [[float("inf")], [2.0]])
def test_errors_of_other_inputs_arent_compared_one_by_one(errors: list[float]) -> None:
    best = trial([1.0, 1.5])
    assert not trial(errors).as_good_as(best)
    assert best.as_good_as(trial(errors))
