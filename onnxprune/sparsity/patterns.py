"""Masks of a pattern over a layer's matrix, of shape (groups, outputs, features).

Features are input channels x kernel taps. Runtimes that use a pattern want it along the input channels of one tap.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.operators.linear import LinearLayer
from onnxprune.recover.lstsq import Mask, Rows
from onnxprune.settings.sparsity import Pattern


def choose(pattern: Pattern, scores: Rows, share: float, taps: int = 1) -> Mask:
    """Return which weights stay: those with the largest scores that the pattern allows.

    Args:
        pattern: the pattern; `misfit` tells whether it fits.
        scores: what each weight is worth; those of a block are added up.
        share: the share of weights to set to zero; N:M has its own.
        taps: the number of kernel taps.
    """
    cells = _cells(pattern, scores, taps)
    if pattern.of:
        rank = np.argsort(np.argsort(-cells, axis=-1, kind="stable"), axis=-1)
        return _matrix(rank < pattern.keep, scores.shape)
    totals = cells.sum(axis=(2, 5), keepdims=True)
    gone = round(share * totals.size)
    stays = np.ones(totals.size, dtype=bool)
    stays[np.argpartition(totals.ravel(), min(gone, totals.size - 1))[:gone]] = False
    return _matrix(np.broadcast_to(stays.reshape(totals.shape), cells.shape), scores.shape)


def misfit(pattern: Pattern, layer: LinearLayer, shape: tuple[int, ...]) -> str | None:
    """Return why a pattern doesn't fit a layer whose weight has some shape; None if it does."""
    channels = layer.features(shape) // prod(layer.kernel)
    outputs = (int(layer.outputs(shape).max()) + 1) // layer.groups
    run = pattern.of or pattern.columns
    if channels % run:
        return f"its {channels} input channels{' of a group' if layer.groups > 1 else ''} aren't a multiple of {run}"
    if outputs % pattern.rows:
        return f"its {outputs} outputs{' of a group' if layer.groups > 1 else ''} aren't a multiple of {pattern.rows}"
    return None


def order(features: int, taps: int) -> NDArray[np.intp]:
    """Return the features with the channels of a tap behind each other."""
    return np.arange(features).reshape(-1, taps).T.ravel()


def _cells(pattern: Pattern, matrix: Rows, taps: int) -> Rows:
    """Return a matrix as (groups, outputs / R, R, taps, inputs / C, C)."""
    groups, outputs, features = matrix.shape
    ordered = matrix.reshape(groups, outputs, features // taps, taps).swapaxes(2, 3)
    run = pattern.of or pattern.columns
    return ordered.reshape(groups, outputs // pattern.rows, pattern.rows, taps, -1, run)


def _matrix(cells: Mask, shape: tuple[int, ...]) -> Mask:
    groups, outputs, features = shape
    taps = cells.shape[3]
    return cells.reshape(groups, outputs, taps, features // taps).swapaxes(2, 3).reshape(shape)
