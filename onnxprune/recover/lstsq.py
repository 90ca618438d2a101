"""Least squares from moments: weights that make a layer's inputs give its targets, near the weights it has.

Minimizes over W  sum_i |W x_i - y_i|^2 + lambda |W - W0|^2  from the moments G = sum x x^T and R = sum y x^T, which fit
in memory however many samples there are. The ridge pulls toward the weights that pruning left, not toward zero: with
little data the layer stays as it was. Its strength is the one that does best on moments of samples held back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Evidence(Protocol):
    """What samples tell of a layer: `Moments` of any number of them, or `onnxprune.recover.samples.Samples`."""

    power: Rows
    count: int

    def add(self, features: Rows, targets: Rows, *, intercept: bool = True) -> None:
        """Add samples."""

    def error(self, matrix: Rows) -> float:
        """Return the mean squared error of a matrix per sample."""

    def solve(self, start: Rows, ridge: float) -> Rows:
        """Return the minimizer for one ridge."""

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features and targets."""

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of what a matrix makes of the features."""


@dataclass(slots=True)
class Moments:
    """Running second moments of features and targets, per group; features get a last column of ones.

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
            intercept: whether the layer can take one; otherwise the last feature is zero, and fits leave it alone.
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

    def solve(self, start: Rows, ridge: float) -> Rows:
        """Return the minimizer for one ridge.

        Args:
            start: the weights to stay near, shape (groups, outputs, features + 1), the last column the intercept.
            ridge: strength, relative to the mean square of a feature.

        Returns:
            The weights, of the shape of ``start``.
        """
        size = self.gram.shape[1]
        diagonal = np.einsum("gii->gi", self.gram)
        scale = diagonal[:, :-1].mean(axis=1) if size > 1 else diagonal[:, 0]
        damping = np.repeat((ridge * np.maximum(scale, 1e-12))[:, None], size, axis=1)
        damping[:, -1] = 1e-9 * self.count  # the intercept is free
        system = self.gram + damping[:, :, None] * np.eye(size)
        residual = self.cross - start @ self.gram
        return np.asarray(start + np.linalg.solve(system, residual.transpose(0, 2, 1)).transpose(0, 2, 1))

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features (with the ones), (groups, features + 1), and of targets, (groups, outputs)."""
        return self.gram[:, :, -1] / self.count, self.cross[:, :, -1] / self.count

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of what a matrix (groups, outputs, features + 1) makes of the features."""
        mean, _ = self.means()
        covariance = self.gram / self.count - mean[:, :, None] * mean[:, None, :]
        return np.asarray(np.einsum("gof,gfh,goh->go", matrix, covariance, matrix))


def reconstruct(moments: Evidence, held_back: Evidence, start: Rows) -> Rows:
    """Fit all weights, with the ridge that does best on samples held back; the weights as they are stand for election.

    Args:
        moments: of the samples to fit.
        held_back: of other samples.
        start: the weights as they are, shape (groups, outputs, features + 1).
    """
    if not held_back.count:  # too little to choose by: stay close
        return moments.solve(start, RIDGES[-1])
    candidates = (start if ridge is None else moments.solve(start, ridge) for ridge in (None, *RIDGES))
    return min(candidates, key=held_back.error)


def shift(moments: Evidence, held_back: Evidence, start: Rows) -> Rows:
    """Fit the intercepts: each output gets its mean back, what removed channels contributed on average."""
    mean_x, mean_y = moments.means()
    shifted = start.copy()
    shifted[..., -1] += mean_y - np.einsum("gof,gf->go", start, mean_x)
    return shifted


def rescale(moments: Evidence, held_back: Evidence, start: Rows) -> Rows:
    """Fit a scale and an intercept for each output, so that it gets its mean and variance back.

    This is what re-estimating batch normalization does, and works the same where the normalization has been folded.
    """
    mean_x, mean_y = moments.means()
    now = moments.spread(start)
    then = moments.power / moments.count - mean_y**2
    scale = np.sqrt(np.maximum(then, 0.0) / np.maximum(now, 1e-12))
    scale = np.where(now > 1e-8 * np.maximum(then, 1e-12), np.clip(scale, 0.1, 10.0), 1.0)
    scaled = start * scale[..., None]
    scaled[..., -1] += mean_y - np.einsum("gof,gf->go", scaled, mean_x)
    return scaled
