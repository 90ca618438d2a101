"""Choose the weights of one layer that stay, and solve for them.

A layer's error is a quadratic in its weights: with G = sum x x^T of its inputs in the sparse network, and y its outputs
in the dense one, it is  tr (W - W*) H (W - W*)^T  around its minimum W*, where H is G and a ridge. Intercepts are free,
and left out of H by elimination.

- Magnitude: the largest w^2 stay.
- Wanda: the largest w^2 G_jj (M. Sun et al., "A simple and effective pruning approach for large language models",
  2023).
- Optimal brain surgeon, column by column: the largest w^2 / (H^-1)_jj stay, with H of the columns that are left; what a
  removed weight did is made up by the columns after it (E. Frantar and D. Alistarh, "SparseGPT", 2023).
- Alternating: W near W* and a matrix with the pattern's zeros are moved together by the alternating direction method of
  multipliers (X. Meng et al., "ALPS: improved optimization for highly sparse one-shot pruning", 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.operators.linear import LinearLayer
from onnxprune.recover.lstsq import Evidence, Mask, Moments, Rows, reconstruct, shift, solvable
from onnxprune.settings.sparsity import Pattern, SparseMethod
from onnxprune.sparsity.patterns import choose, order

RIDGE = 1e-2
_COLUMNS = 128  # of the sweep, among which the weakest weights are chosen
_WIDEST = 2048  # features, above which an eigendecomposition takes too long
# Of the alternation: the first penalty relative to the mean of the diagonal, growth by how many weights are exchanged.
_PENALTY, _EVERY, _ROUNDS = 0.1, 3, 60
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


@dataclass(frozen=True, slots=True)
class Way:
    """How to make a layer sparse.

    Attributes:
        method: how weights are chosen.
        pattern: where zeros may be.
        repair: whether the weights that stay are solved for, with the ridge that does best on samples held back.
    """

    method: SparseMethod
    pattern: Pattern
    repair: bool


def solve(
    way: Way, share: float, layer: LinearLayer, fitted: Evidence | None, held: Evidence | None, start: Rows
) -> Rows:
    """Return a layer's weights with zeros.

    Args:
        way: how.
        share: the share of zeros; N:M has its own.
        layer: the layer.
        fitted: moments of its inputs and targets; not needed by magnitude.
        held: those of other samples, to choose a ridge by; None for the usual one.
        start: its weights, shape (groups, outputs, features + 1), the last column the intercept, which always stays.
    """
    mask, found = _chosen(way, share, prod(layer.kernel), fitted, start)
    if not way.repair or fitted is None:
        return found
    if not (solvable(mask) and isinstance(fitted, Moments)):
        return shift(fitted, fitted, found)
    if held is None:
        return fitted.solve(start, RIDGE, mask)
    return reconstruct(fitted, held, start, mask)


def _chosen(way: Way, share: float, taps: int, moments: Evidence | None, start: Rows) -> tuple[Mask, Rows]:
    """Return which weights stay, and values for them."""
    weights, squares = start[..., :-1], start[..., :-1] ** 2
    if way.method == "magnitude" or moments is None:
        mask = choose(way.pattern, squares, share, taps)
    elif way.method == "wanda" or not isinstance(moments, Moments):
        mask = choose(way.pattern, squares * moments.squares()[:, None], share, taps)
    else:
        find = sweep if way.method == "obs" or weights.shape[2] > _WIDEST else alternate
        mask, weights = find(way.pattern, share, *quadratic(moments, start), taps)
    found = start.copy()
    found[..., :-1] = np.where(mask, weights, 0.0)
    return np.concatenate([mask, np.ones((*mask.shape[:2], 1), dtype=bool)], axis=2), found


def quadratic(moments: Moments, start: Rows) -> tuple[Rows, Rows]:
    """Return the minimum W* of a layer's error, and its curvature H, without intercepts."""
    goal = moments.solve(start, RIDGE)
    system = moments.gram + moments.damping(RIDGE)[:, :, None] * np.eye(moments.gram.shape[1])
    last = system[:, :-1, -1]
    return goal[..., :-1], system[:, :-1, :-1] - last[:, :, None] * last[:, None] / system[:, -1, -1, None, None]


def sweep(pattern: Pattern, share: float, goal: Rows, curvature: Rows, taps: int) -> tuple[Mask, Rows]:
    """Choose and make up column by column.

    Args:
        pattern: where zeros may be.
        share: the share of zeros.
        goal: the minimum, shape (groups, outputs, features).
        curvature: shape (groups, features, features).
        taps: the number of kernel taps.
    """
    features = goal.shape[2]
    ordered = order(features, taps)
    w = goal[..., ordered].copy()
    root = np.linalg.cholesky(np.linalg.inv(curvature[:, ordered][:, :, ordered])).swapaxes(1, 2)
    scale = np.einsum("gii->gi", root)
    mask = np.ones(w.shape, dtype=bool)
    run = pattern.of or pattern.columns
    width = max(_COLUMNS // run, 1) * run
    for first in range(0, features, width):
        block = slice(first, min(first + width, features))
        last = block.stop
        if not pattern.of:
            mask[..., block] = choose(pattern, w[..., block] ** 2 / scale[:, None, block] ** 2, share)
        error = np.zeros_like(w[..., block])
        for column in range(first, last):
            if pattern.of and (column - first) % run == 0:
                cell = slice(column, column + run)
                mask[..., cell] = choose(pattern, w[..., cell] ** 2 / scale[:, None, cell] ** 2, share)
            removed = np.where(mask[..., column], 0.0, w[..., column]) / scale[:, None, column]
            w[..., column:last] -= removed[..., None] * root[:, None, column, column:last]
            error[..., column - first] = removed
        w[..., last:] -= error @ root[:, block, last:]
    back = np.argsort(ordered)
    return mask[..., back], np.where(mask, w, 0.0)[..., back]


def alternate(pattern: Pattern, share: float, goal: Rows, curvature: Rows, taps: int) -> tuple[Mask, Rows]:
    """Move the minimum and a sparse matrix together, see `sweep`."""
    scale = np.sqrt(np.einsum("gii->gi", curvature))[:, None]
    values, vectors = np.linalg.eigh(curvature / (scale.swapaxes(1, 2) * scale))
    best = goal * scale
    pull = best @ ((vectors * values[:, None]) @ vectors.swapaxes(1, 2))
    penalty, dual = _PENALTY, np.zeros_like(best)
    sparse = best
    mask = before = choose(pattern, best**2, share, taps)
    for step in range(_ROUNDS):
        near = (pull + penalty * sparse - dual) @ vectors / (values + penalty)[:, None] @ vectors.swapaxes(1, 2)
        shifted = near + dual / penalty
        mask = choose(pattern, shifted**2, share, taps)
        sparse = np.where(mask, shifted, 0.0)
        dual = dual + penalty * (near - sparse)
        if step % _EVERY == _EVERY - 1:
            exchanged = float((mask != before).sum()) / max(float(mask.sum()), 1.0)
            if not exchanged and step > _EVERY:
                break
            penalty *= next(growth for least, growth in _GROWTH if exchanged >= least)
            before = mask
    return mask, np.where(mask, near, 0.0) / scale
