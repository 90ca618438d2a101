"""Least squares from samples, against the same from moments."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.recover import lstsq
from onnxprune.recover.lstsq import WIDE, Evidence, Moments, Samples, evidence

GROUPS, OUTPUTS, FEATURES, COUNT = 2, 3, 40, 25


def filled(kind: type[Evidence], *, intercept: bool = True, count: int = COUNT) -> Evidence:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((count, GROUPS, FEATURES)) + 1
    targets = rng.standard_normal((count, GROUPS * OUTPUTS)) + 3
    found = kind()
    for part in (slice(10), slice(10, None)):
        found.add(features[part], targets[part], intercept=intercept)
    return found


START = np.random.default_rng(1).standard_normal((GROUPS, OUTPUTS, FEATURES + 1))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_both_find_the_same(intercept: bool, ridge: float) -> None:
    few, many = (filled(kind, intercept=intercept) for kind in (Samples, Moments))
    found = few.solve(START, ridge)
    assert np.allclose(found, many.solve(START, ridge), atol=1e-4)
    assert not np.allclose(found, many.solve(START, 10 * ridge), atol=1e-2)
    assert few.error(found) == pytest.approx(many.error(found), rel=1e-4, abs=1e-6)
    assert few.error(START) == pytest.approx(many.error(START), rel=1e-4)
    assert few.count == many.count and np.allclose(few.power, many.power)
    assert (found[..., -1] == START[..., -1]).all() != intercept


def test_means_and_variances_are_the_same() -> None:
    few, many = filled(Samples), filled(Moments)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(few.means(), many.means(), strict=True))
    assert np.allclose(few.spread(START), many.spread(START), rtol=1e-4)
    assert not np.allclose(few.spread(START), many.spread(2 * START), rtol=1e-1)


def test_room_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstsq, "_BYTES", 4 * GROUPS * FEATURES * 12)
    found = filled(Samples)
    assert found.count == 12 and found.solve(START, 0.1).shape == START.shape
    assert isinstance(evidence(WIDE), Moments) and isinstance(evidence(WIDE + 1), Samples)
