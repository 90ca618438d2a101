"""Least squares from the samples themselves, for layers that have more features than there are samples.

A fully connected layer behind a flattened image has tens of thousands of features. The moments of their pairs would not
fit into memory, and most directions would be empty. The same minimum is found among combinations of the samples: with X
the samples in rows and E what they lack, the change is  E^T (X X^T + lambda I)^-1 X.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.recover.lstsq import Evidence, Moments, Rows

# Features of a conv group beyond which samples are kept, and bytes of them; more are left aside.
WIDE = 6144
_BYTES = 2**28


def evidence(features: int) -> Evidence:
    """Return what fits a layer of so many features: moments, or samples where it has very many."""
    return Moments() if features <= WIDE else Samples()


class Samples:
    """Features and targets of some samples, per group.

    Attributes:
        power: sum of y^2, shape (groups, outputs).
        count: number of samples.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.power: Rows = np.zeros(())
        self.count = 0
        self._intercept = True
        self._x: list[NDArray[np.float32]] = []
        self._y: list[Rows] = []

    def add(self, features: Rows, targets: Rows, *, intercept: bool = True) -> None:
        """Add samples, see `Moments.add`, as long as there is room."""
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
        lack = self._targets - self._predict(matrix)
        return float((lack**2).sum()) / max(self.count, 1)

    def solve(self, start: Rows, ridge: float) -> Rows:
        """Return the minimizer for one ridge, see `Moments.solve`."""
        found = start.copy()
        lack = self._targets - self._predict(start)
        for g, x in enumerate(self._features.astype(np.float64)):
            middle, goal = (x.mean(axis=0), lack[g].mean(axis=0)) if self._intercept else (0.0, 0.0)
            damping = ridge * max(float((x**2).sum()) / x.shape[1], 1e-12)
            around = x - middle
            weights = np.linalg.solve(around @ around.T + damping * np.eye(len(x)), lack[g] - goal)
            change = weights.T @ around
            found[g, :, :-1] += change
            found[g, :, -1] += goal - change @ middle if self._intercept else 0.0
        return found

    def means(self) -> tuple[Rows, Rows]:
        """Return the means of features (with the ones), (groups, features + 1), and of targets, (groups, outputs)."""
        means = self._features.mean(axis=1, dtype=np.float64)
        ones = np.full((len(means), 1), float(self._intercept))
        return np.concatenate([means, ones], axis=1), self._targets.mean(axis=1)

    def spread(self, matrix: Rows) -> Rows:
        """Return the variance of what a matrix (groups, outputs, features + 1) makes of the features."""
        return np.asarray(self._predict(matrix).var(axis=1))

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
