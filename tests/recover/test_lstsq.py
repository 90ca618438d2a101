"""Fits from moments against fits of the raw samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from onnxprune.recover.lstsq import RIDGES, Moments, reconstruct, rescale, shift

Rows = NDArray[np.float64]
Fit = Callable[[Moments, Moments, Rows], Rows]


class Samples:
    """Correlated features with a mean, targets that depend on them, and weights that don't fit yet."""

    def __init__(
        self, seed: int = 0, count: int = 200, groups: int = 2, features: int = 5, outputs: int = 3, noise: float = 0.3
    ) -> None:
        self.rng = np.random.default_rng(seed)
        mixing = self.rng.standard_normal((groups, features, features))
        x = self.rng.standard_normal((groups, count, features)) @ mixing + self.rng.standard_normal(
            (groups, 1, features)
        )
        self.truth = self.rng.standard_normal((groups, outputs, features + 1))
        clean = self.ones(x) @ self.truth.transpose(0, 2, 1)
        self.x, self.y = x, clean + noise * self.rng.standard_normal(clean.shape)
        self.start = self.truth + 0.5 * self.rng.standard_normal(self.truth.shape)

    @staticmethod
    def ones(x: Rows) -> Rows:
        return np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)

    def moments(self, samples: slice = slice(None), batches: int = 3) -> Moments:
        moments = Moments()
        x, y = self.x[:, samples], self.y[:, samples]
        for part in np.array_split(np.arange(x.shape[1]), batches):
            rows = y[:, part].transpose(1, 0, 2)
            moments.add(x[:, part].transpose(1, 0, 2), rows.reshape(len(part), -1))
        return moments

    def outputs(self, matrix: Rows) -> Rows:
        """Apply matrices to the samples; shape (groups, samples, outputs)."""
        return np.asarray(self.ones(self.x) @ matrix.transpose(0, 2, 1))

    def error(self, matrix: Rows, samples: slice = slice(None)) -> float:
        """Return the mean over samples of the squared error, summed over outputs."""
        wrong = (self.outputs(matrix) - self.y)[:, samples]
        return float((wrong**2).sum() / wrong.shape[1])


def closed_form(samples: Samples, ridge: float) -> Rows:
    """Stack the ridge under the raw samples as further equations, and solve those."""
    found = np.empty_like(samples.start)
    for g, (x, y) in enumerate(zip(samples.ones(samples.x), samples.y, strict=True)):
        size = x.shape[1]
        strength = np.full(size, ridge * (x[:, :-1] ** 2).sum(axis=0).mean())
        strength[-1] = 0.0  # the intercept is free
        pull = np.diag(np.sqrt(strength))
        left, right = np.vstack([x, pull]), np.vstack([y, pull @ samples.start[g].T])
        found[g] = np.linalg.lstsq(left, right, rcond=None)[0].T
    return found


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("ridge", [1e-12, *RIDGES, 30.0])
def test_a_solution_is_that_of_the_raw_samples(ridge: float, groups: int) -> None:
    samples = Samples(groups=groups)
    expected = closed_form(samples, ridge)
    found = samples.moments().solve(samples.start, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # The controls: neither another ridge nor other samples give the same.
    assert not np.allclose(found, closed_form(samples, max(ridge, 1e-3) * 3), atol=1e-5)
    assert not np.allclose(found, samples.moments(slice(100)).solve(samples.start, ridge), atol=1e-3)


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))
def test_without_a_ridge_it_is_plain_least_squares(seed: int, groups: int, features: int, outputs: int) -> None:
    samples = Samples(seed, groups=groups, features=features, outputs=outputs)
    found = samples.moments().solve(samples.start, 1e-13)
    for g, (x, y) in enumerate(zip(samples.ones(samples.x), samples.y, strict=True)):
        expected = np.linalg.lstsq(x, y, rcond=None)[0].T
        np.testing.assert_allclose(found[g], expected, rtol=1e-4, atol=1e-4)
    assert samples.error(found) < samples.error(samples.start)


def test_the_truth_is_found_where_there_is_no_noise() -> None:
    samples = Samples(noise=0.0)
    found = samples.moments().solve(samples.start, 1e-12)
    np.testing.assert_allclose(found, samples.truth, atol=1e-6)
    assert not np.allclose(samples.start, samples.truth, atol=0.1)


def test_a_strong_ridge_leaves_the_weights_but_for_the_intercept() -> None:
    samples = Samples()
    found = samples.moments().solve(samples.start, 1e9)
    np.testing.assert_allclose(found[..., :-1], samples.start[..., :-1], atol=1e-6)
    mean = (samples.y - samples.outputs(samples.start)).mean(axis=1)
    np.testing.assert_allclose(found[..., -1] - samples.start[..., -1], mean, atol=1e-6)


def test_dead_features_and_few_samples_are_no_trouble() -> None:
    samples = Samples(count=4, features=9)
    samples.x[:, :, 3] = 0.0
    found = samples.moments().solve(samples.start, 1e-3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., 3], samples.start[..., 3])
    samples.x[...] = 0.0
    assert np.isfinite(samples.moments().solve(samples.start, 1e-4)).all()


# Moments


def test_batches_add_up() -> None:
    samples = Samples()
    one, many = samples.moments(batches=1), samples.moments(batches=17)
    for a, b in zip((one.gram, one.cross, one.power), (many.gram, many.cross, many.power), strict=True):
        np.testing.assert_allclose(a, b)
    assert one.count == many.count == 200


def test_the_error_is_that_of_the_samples() -> None:
    samples = Samples()
    for matrix in (samples.start, samples.truth, np.zeros_like(samples.start)):
        assert samples.moments().error(matrix) == pytest.approx(samples.error(matrix))
    assert samples.moments().error(samples.start) != pytest.approx(samples.error(samples.truth))


# Fits


@settings(max_examples=60)
@given(st.integers(0, 2**16), st.integers(6, 60), st.floats(0, 3))
def test_reconstruction_is_never_worse_where_it_counts(seed: int, count: int, noise: float) -> None:
    """With as few as three samples to fit eight weights, and noise many times the signal."""
    samples = Samples(seed, count, groups=1, features=7, noise=noise)
    fitted, held = slice(count // 2), slice(count // 2, None)
    found = reconstruct(samples.moments(fitted), samples.moments(held), samples.start)
    assert samples.error(found, held) <= samples.error(samples.start, held) * (1 + 1e-9) + 1e-9


def test_reconstruction_gains_with_many_samples() -> None:
    samples = Samples(count=1000)
    found = reconstruct(samples.moments(slice(800)), samples.moments(slice(800, None)), samples.start)
    best = samples.error(samples.truth, slice(800, None))
    assert samples.error(found, slice(800, None)) < 1.1 * best
    assert samples.error(samples.start, slice(800, None)) > 3 * best


def test_weights_that_fit_already_stay_as_they_are() -> None:
    """A fit to eight noisy samples does worse than the truth on many others."""
    samples = Samples(3, count=1000, groups=1, features=12, noise=2.0)
    samples.start = samples.truth
    found = reconstruct(samples.moments(slice(8)), samples.moments(slice(8, None)), samples.start)
    np.testing.assert_array_equal(found, samples.start)


def test_shift_restores_the_mean_and_nothing_else() -> None:
    samples = Samples()
    moments = samples.moments()
    found = shift(moments, moments, samples.start)
    np.testing.assert_array_equal(found[..., :-1], samples.start[..., :-1])
    before, after, wanted = samples.outputs(samples.start), samples.outputs(found), samples.y
    np.testing.assert_allclose(after.mean(axis=1), wanted.mean(axis=1))
    np.testing.assert_allclose(after.std(axis=1), before.std(axis=1))
    assert not np.allclose(before.mean(axis=1), wanted.mean(axis=1), atol=0.1)
    assert not np.allclose(after.std(axis=1), wanted.std(axis=1), atol=0.1)


def test_rescale_restores_mean_and_variance() -> None:
    samples = Samples()
    moments = samples.moments()
    found = rescale(moments, moments, samples.start)
    before, after, wanted = samples.outputs(samples.start), samples.outputs(found), samples.y
    np.testing.assert_allclose(after.mean(axis=1), wanted.mean(axis=1))
    np.testing.assert_allclose(after.std(axis=1), wanted.std(axis=1))
    assert not np.allclose(before.std(axis=1), wanted.std(axis=1), atol=0.1)
    # One factor for each output, so that directions stay.
    ratio = found[..., :-1] / samples.start[..., :-1]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape))
    assert (ratio > 0).all()


def test_rescale_leaves_the_scale_of_outputs_that_say_nothing() -> None:
    samples = Samples(noise=0.0)
    samples.start[:, 0, :-1] = 0.0  # gives a constant, of whatever scale
    samples.y[:, :, 1] = 1000 * samples.y[:, :, 1]  # out of reach of any sensible scale
    moments = samples.moments()
    found = rescale(moments, moments, samples.start)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 0, :-1], samples.start[:, 0, :-1])
    np.testing.assert_allclose(found[:, 1, :-1], 10 * samples.start[:, 1, :-1])
    np.testing.assert_allclose(samples.outputs(found).mean(axis=1), samples.y.mean(axis=1))


@pytest.mark.parametrize("fit", [shift, rescale, reconstruct])
def test_no_fit_changes_its_arguments(fit: Fit) -> None:
    samples = Samples()
    moments, start = samples.moments(), samples.start.copy()
    before = [a.copy() for a in (moments.gram, moments.cross, moments.power)]
    fit(moments, samples.moments(slice(50)), start)
    np.testing.assert_array_equal(start, samples.start)
    for old, new in zip(before, (moments.gram, moments.cross, moments.power), strict=True):
        np.testing.assert_array_equal(old, new)
