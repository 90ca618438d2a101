"""Columns that make up for each other, against least squares with the replaced columns fixed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.recover.columns import column_by_column, factor


def samples(features: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated inputs and weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, features)) @ rng.normal(size=(features, features))
    return x, rng.normal(size=(1, outputs, features))


@pytest.mark.parametrize("width", [128, 2])
@pytest.mark.parametrize("fixed", [0, 3])
def test_those_behind_a_column_make_up_for_its_change(width: int, fixed: int) -> None:
    x, goal = samples(6, 4)
    found = column_by_column(
        goal, factor((x.T @ x)[None]), lambda w, c: np.zeros((1, 4)) if c == fixed else w[..., c], width
    )
    expected, behind = goal[0].copy(), slice(fixed + 1, None)
    lost = x[:, [fixed]] @ expected[:, [fixed]].T
    expected[:, fixed] = 0
    expected[:, behind] += np.linalg.lstsq(x[:, behind], lost, rcond=None)[0].T
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def test_rounded_columns_lose_less_than_rounding_alone() -> None:
    x, goal = samples(12, 8)
    found = column_by_column(goal, factor((x.T @ x)[None]), lambda w, c: np.round(w[..., c]), width=5)
    assert np.array_equal(found, np.round(found))
    mine, alone = (float(np.square(x @ (w - goal)[0].T).sum()) for w in (found, np.round(goal)))
    assert mine < 0.6 * alone


def test_features_of_very_different_size_are_factored() -> None:
    x, _ = samples(5, 1)
    gram = (x * 10.0 ** np.array([-7, 0, 7, -3, 3])).T @ (x * 10.0 ** np.array([-7, 0, 7, -3, 3]))
    upper = factor(gram[None])[0]
    np.testing.assert_allclose(np.diag(upper @ gram @ upper.T), 1, rtol=1e-6)
    assert not np.tril(upper, -1).any()
