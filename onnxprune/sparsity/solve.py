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
from onnxprune.recover.columns import column_by_column, factor, quadratic
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
        mask, weights = find(way.pattern, share, *quadratic(moments, start, RIDGE), taps)
    found = start.copy()
    found[..., :-1] = np.where(mask, weights, 0.0)
    return np.concatenate([mask, np.ones((*mask.shape[:2], 1), dtype=bool)], axis=2), found


def sweep(pattern: Pattern, share: float, goal: Rows, curvature: Rows, taps: int) -> tuple[Mask, Rows]:
    """Choose and make up column by column.

    Args:
        pattern: where zeros may be.
        share: the share of zeros.
        goal: the minimum, shape (groups, outputs, features).
        curvature: shape (groups, features, features).
        taps: the number of kernel taps.
    """
    ordered = order(goal.shape[2], taps)
    upper = factor(curvature[:, ordered][:, :, ordered])
    scale = np.einsum("gii->gi", upper)[:, None] ** 2
    mask = np.ones(goal.shape, dtype=bool)
    run = pattern.of or pattern.columns
    width = max(_COLUMNS // run, 1) * run
    at_once = run if pattern.of else width

    def without_the_weakest(weights: Rows, column: int) -> Rows:
        if column % at_once == 0:
            cell = slice(column, column + at_once)
            mask[..., cell] = choose(pattern, weights[..., cell] ** 2 / scale[..., cell], share)
        return np.where(mask[..., column], weights[..., column], 0.0)

    found = column_by_column(goal[..., ordered], upper, without_the_weakest, width)
    back = np.argsort(ordered)
    return mask[..., back], found[..., back]


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
