"""Replace the columns of a layer's matrix one after the other: those that follow make up for the errors.

With H the curvature of a layer's quadratic error, replacing a column costs least if the columns behind it move by its
error times their row of the factor of H^-1 (B. Hassibi and D. Stork, "Second order derivatives for network pruning:
optimal brain surgeon", NIPS 1992). A fixed order of columns needs one factorization for all rows (E. Frantar et al.,
"GPTQ", ICLR 2023). What a column is replaced by is up to the caller: zeros, or rounded values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.recover.lstsq import Moments, Rows

WIDTH = 128


def quadratic(moments: Moments, start: Rows, ridge: float) -> tuple[Rows, Rows]:
    """Return the minimum W* of a layer's error, and its curvature H, without intercepts.

    Args:
        moments: of the layer's inputs and targets.
        start: the weights to stay near, shape (groups, outputs, features + 1), the last column the intercept.
        ridge: how near, see `Moments.solve`.
    """
    goal = moments.solve(start, ridge)
    system = moments.gram + moments.damping(ridge)[:, :, None] * np.eye(moments.gram.shape[1])
    last = system[:, :-1, -1]
    return goal[..., :-1], system[:, :-1, :-1] - last[:, :, None] * last[:, None] / system[:, -1, -1, None, None]


def factor(curvature: Rows) -> Rows:
    """Return the upper triangle U with U^T U = H^-1, for H of shape (groups, features, features).

    The square of its diagonal at j is that of the inverse of H without the columns before j.
    """
    scale = np.sqrt(np.einsum("gff->gf", curvature))  # features may differ by orders of magnitude
    inverse = np.linalg.inv(curvature / (scale[:, :, None] * scale[:, None, :]))
    return np.asarray(np.linalg.cholesky(inverse).swapaxes(1, 2) / scale[:, None, :])


def column_by_column(weights: Rows, upper: Rows, replace: Callable[[Rows, int], Rows], width: int = WIDTH) -> Rows:
    """Return weights whose columns are replaced in order.

    Args:
        weights: where the error is least, shape (groups, outputs, features).
        upper: what `factor` returns.
        replace: returns what a column is replaced by, shape (groups, outputs). Called with the weights as they are by
            then, of which those of the same block are up to date, and the column's number.
        width: the number of columns of a block. Those behind it are moved once all of it is replaced, which is faster.
    """
    found = weights.copy()
    features = found.shape[2]
    for first in range(0, features, width):
        last = min(first + width, features)
        errors = np.zeros_like(found[..., first:last])
        for column in range(first, last):
            new = replace(found, column)
            error = (found[..., column] - new) / upper[:, None, column, column]
            found[..., column] = new
            found[..., column + 1 : last] -= error[..., None] * upper[:, None, column, column + 1 : last]
            errors[..., column - first] = error
        found[..., last:] -= errors @ upper[:, first:last, last:]
    return found
