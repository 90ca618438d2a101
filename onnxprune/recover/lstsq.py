"""Least squares for one layer: weights that map its inputs to its targets, near the weights that it has.

Minimizes over W  sum_i |W x_i - y_i|^2 + lambda |W - W0|^2. The ridge pulls toward the weights W0 that pruning left,
not toward zero: with little data the layer stays as it was. lambda is the value that does best on held-back samples.

`Moments` holds G = sum x x^T and R = sum y x^T, whose size doesn't depend on the number of samples. `Samples` holds the
samples themselves, for layers with more features than samples, such as a fully connected layer after a flattened image
with tens of thousands of features. There the moments wouldn't fit into memory, and the minimum lies among combinations
of the samples: with X the samples in rows and E their residuals, the change is  E^T (X X^T + lambda I)^-1 X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Mask = NDArray[np.bool_]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Evidence(Protocol):
    """What a fit needs of a layer's samples: `Moments` or `Samples`."""

    power: Rows
    count: int

    def add(self, features: Rows, targets: Rows, *, intercept: bool = True) -> None:
        """Add samples."""

    def error(self, matrix: Rows) -> float:
        """Return the mean squared error of a matrix per sample."""

    def solve(self, start: Rows, ridge: float, mask: Mask | None = None) -> Rows:
        """Return the minimizer for one ridge."""

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features and targets."""

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of a matrix's outputs."""

    def squares(self) -> Rows:
        """Return the mean squares of features, shape (groups, features)."""

    def covariance(self, matrix: Rows) -> Rows:
        """Return the covariance of a matrix's outputs, shape (groups, outputs, outputs)."""


@dataclass(slots=True)
class Moments:
    """Running second moments of features and targets per conv group; a last feature is all ones.

    Attributes:
        gram: sum of x x^T, shape (groups, features + 1, features + 1).
        cross: sum of y x^T, shape (groups, outputs, features + 1).
        power: sum of y^2, shape (groups, outputs).
        count: number of samples.
    """

    gram: Rows = field(default_factory=lambda: np.zeros(()))
    cross: Rows = field(default_factory=lambda: np.zeros(()))
    power: Rows = field(default_factory=lambda: np.zeros(()))
    count: int = 0

    def add(self, features: Rows, targets: Rows, *, intercept: bool = True) -> None:
        """Add samples.

        Args:
            features: shape (n, groups, features).
            targets: shape (n, groups x outputs).
            intercept: whether the layer can take an intercept; if not, the last feature is zero and isn't fitted.
        """
        n, groups, _ = features.shape
        last = np.full((n, groups, 1), float(intercept))
        x = np.concatenate([features, last], axis=2).transpose(1, 0, 2)
        y = targets.reshape(n, groups, targets.shape[1] // groups).transpose(1, 2, 0)
        self.gram = self.gram + x.transpose(0, 2, 1) @ x
        self.cross = self.cross + y @ x
        self.power = self.power + (y**2).sum(axis=2)
        self.count += n

    def error(self, matrix: Rows) -> float:
        """Return the mean squared error of a matrix (groups, outputs, features + 1) per sample."""
        fit = np.einsum("gof,gof->", matrix @ self.gram, matrix) - 2 * np.einsum("gof,gof->", matrix, self.cross)
        return max(float(fit + self.power.sum()), 0.0) / max(self.count, 1)

    def solve(self, start: Rows, ridge: float, mask: Mask | None = None) -> Rows:
        """Return the minimizer for one ridge.

        Args:
            start: the weights to stay near, shape (groups, outputs, features + 1), the last column the intercept.
            ridge: strength, relative to the mean square of a feature.
            mask: which weights may differ from zero, of the shape of ``start``; all by default. If these are too many
                to solve for, only the intercepts are fitted.

        Returns:
            The weights, of the shape of ``start``.
        """
        damping = self.damping(ridge)
        system = self.gram + damping[:, :, None] * np.eye(self.gram.shape[1])
        if mask is not None and not solvable(mask):
            return shift(self, self, np.where(mask, start, 0.0))
        if mask is not None:
            return constrained(system, self.cross + start * damping[:, None], mask)
        residual = self.cross - start @ self.gram
        return np.asarray(start + np.linalg.solve(system, residual.transpose(0, 2, 1)).transpose(0, 2, 1))

    def damping(self, ridge: float) -> Rows:
        """Return what a ridge adds to the diagonal of the moments, shape (groups, features + 1)."""
        size = self.gram.shape[1]
        diagonal = np.einsum("gii->gi", self.gram)
        scale = diagonal[:, :-1].mean(axis=1) if size > 1 else diagonal[:, 0]
        damping = np.repeat((ridge * np.maximum(scale, 1e-12))[:, None], size, axis=1)
        damping[:, -1] = 1e-9 * self.count  # the intercept is free
        return damping

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features (with the ones), (groups, features + 1), and of targets, (groups, outputs)."""
        return self.gram[:, :, -1] / self.count, self.cross[:, :, -1] / self.count

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of the outputs of a matrix (groups, outputs, features + 1), shape (groups, outputs)."""
        return np.asarray(np.einsum("gof,gfh,goh->go", matrix, self._spread_of_features(), matrix))

    def covariance(self, matrix: Rows) -> Rows:
        """Return the covariance of the outputs of a matrix, shape (groups, outputs, outputs)."""
        return np.asarray(matrix @ self._spread_of_features() @ matrix.transpose(0, 2, 1))

    def _spread_of_features(self) -> Rows:
        mean, _ = self.means()
        return np.asarray(self.gram / self.count - mean[:, :, None] * mean[:, None, :])

    def squares(self) -> Rows:
        """Return the mean squares of features, shape (groups, features)."""
        return np.asarray(np.einsum("gii->gi", self.gram)[:, :-1] / self.count)


class Samples:
    """Features and targets of some samples per conv group.

    Attributes:
        power: sum of y^2, shape (groups, outputs).
        count: number of samples.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self.power: Rows = np.zeros(())
        self.count = 0
        self._intercept = True
        self._x: list[NDArray[np.float32]] = []
        self._y: list[Rows] = []

    def add(self, features: Rows, targets: Rows, *, intercept: bool = True) -> None:
        """Add samples as `Moments.add` does, up to a limit of memory."""
        _, groups, width = features.shape
        room = max(_BYTES // (4 * groups * width) - self.count, 0)
        x, y = features[:room], targets[:room].reshape(-1, groups, targets.shape[1] // groups)
        self._x.append(x.transpose(1, 0, 2).astype(np.float32))
        self._y.append(y.transpose(1, 0, 2))
        self.power = self.power + (y**2).sum(axis=0)
        self.count += len(x)
        self._intercept = intercept

    def error(self, matrix: Rows) -> float:
        """Return the mean squared error of a matrix (groups, outputs, features + 1) per sample."""
        residual = self._targets - self._predict(matrix)
        return float((residual**2).sum()) / max(self.count, 1)

    def solve(self, start: Rows, ridge: float, mask: Mask | None = None) -> Rows:
        """Return the minimizer for one ridge, see `Moments.solve`; with a mask, only the intercepts are fitted."""
        if mask is not None:
            return shift(self, self, np.where(mask, start, 0.0))
        found = start.copy()
        residual = self._targets - self._predict(start)
        for g, x in enumerate(self._features.astype(np.float64)):
            mean, target = (x.mean(axis=0), residual[g].mean(axis=0)) if self._intercept else (0.0, 0.0)
            damping = ridge * max(float((x**2).sum()) / x.shape[1], 1e-12)
            centered = x - mean
            weights = np.linalg.solve(centered @ centered.T + damping * np.eye(len(x)), residual[g] - target)
            change = weights.T @ centered
            found[g, :, :-1] += change
            found[g, :, -1] += target - change @ mean if self._intercept else 0.0
        return found

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features (with the ones), (groups, features + 1), and of targets, (groups, outputs)."""
        means = self._features.mean(axis=1, dtype=np.float64)
        ones = np.full((len(means), 1), float(self._intercept))
        return np.concatenate([means, ones], axis=1), self._targets.mean(axis=1)

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of the outputs of a matrix (groups, outputs, features + 1), shape (groups, outputs)."""
        return np.asarray(self._predict(matrix).var(axis=1))

    def squares(self) -> Rows:
        """Return the mean squares of features, shape (groups, features)."""
        return np.asarray(np.square(self._features, dtype=np.float64).mean(axis=1))

    def covariance(self, matrix: Rows) -> Rows:
        """Return the covariance of a matrix's outputs, shape (groups, outputs, outputs)."""
        outputs = self._predict(matrix)
        centered = outputs - outputs.mean(axis=1, keepdims=True) if self._intercept else outputs
        return np.asarray(centered.transpose(0, 2, 1) @ centered / self.count)

    @property
    def _features(self) -> NDArray[np.float32]:
        return np.concatenate(self._x, axis=1)

    @property
    def _targets(self) -> Rows:
        return np.concatenate(self._y, axis=1)

    def _predict(self, matrix: Rows) -> Rows:
        """Return outputs, shape (groups, samples, outputs)."""
        last = matrix[:, None, :, -1] if self._intercept else 0.0
        return np.asarray(self._features @ matrix[..., :-1].transpose(0, 2, 1) + last)


# Layers with more features in a conv group keep samples, up to this many bytes.
WIDE = 6144
_BYTES = 2**28
_LARGEST = 1e12  # sum of the cubes of the weights of each output, above which solving for them takes minutes


def evidence(features: int) -> Evidence:
    """Return empty evidence for a layer with some number of features per group: samples if there are very many."""
    return Moments() if features <= WIDE else Samples()


def solvable(mask: Mask) -> bool:
    """Whether weights that may differ from zero can be solved for in reasonable time."""
    return float((mask.sum(axis=2, dtype=float) ** 3).sum()) <= _LARGEST


def constrained(system: Rows, goal: Rows, mask: Mask) -> Rows:
    """Return the minimizer of  sum w A w^T / 2 - b w^T  over rows w with zeros where a mask is false.

    Each row is solved by itself, as rows differ in their zeros.

    Args:
        system: the matrices A, shape (groups, features, features).
        goal: the rows b, shape (groups, outputs, features).
        mask: of the shape of ``goal``.
    """
    found = np.zeros_like(goal)
    for g, o in np.ndindex(*goal.shape[:2]):
        free = np.flatnonzero(mask[g, o])
        found[g, o, free] = np.linalg.solve(system[g][np.ix_(free, free)], goal[g, o, free])
    return found


def reconstruct(
    moments: Evidence,
    held_back: Evidence,
    start: Rows,
    mask: Mask | None = None,
    limited: Callable[[Rows], Rows] = lambda weights: weights,
) -> Rows:
    """Fit all weights, with the ridge that does best on held-back samples; the current weights are a candidate too.

    Args:
        moments: of the samples to fit.
        held_back: of other samples.
        start: the current weights, shape (groups, outputs, features + 1).
        mask: which of them may differ from zero; all by default.
        limited: returns the nearest weights that are allowed.
    """
    if not held_back.count:  # nothing to choose a ridge by: stay close
        return limited(moments.solve(start, RIDGES[-1], mask))
    near = start if mask is None else np.where(mask, start, 0.0)
    candidates = (near if ridge is None else moments.solve(start, ridge, mask) for ridge in (None, *RIDGES))
    return min(map(limited, candidates), key=held_back.error)


def shift(moments: Evidence, held_back: Evidence, start: Rows) -> Rows:
    """Fit the intercepts, so that each output gets back what removed channels contributed on average."""
    mean_x, mean_y = moments.means()
    shifted = start.copy()
    shifted[..., -1] += mean_y - np.einsum("gof,gf->go", start, mean_x)
    return shifted


def rescale(moments: Evidence, held_back: Evidence, start: Rows) -> Rows:
    """Fit a scale and an intercept for each output that restore its mean and variance.

    The effect is that of re-estimating batch normalization, also where the normalization is folded into the weights.
    """
    mean_x, mean_y = moments.means()
    now = moments.spread(start)
    then = moments.power / moments.count - mean_y**2
    scale = np.sqrt(np.maximum(then, 0.0) / np.maximum(now, 1e-12))
    scale = np.where(now > 1e-8 * np.maximum(then, 1e-12), np.clip(scale, 0.1, 10.0), 1.0)
    scaled = start * scale[..., None]
    scaled[..., -1] += mean_y - np.einsum("gof,gf->go", scaled, mean_x)
    return scaled
