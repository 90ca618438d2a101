"""Magnitudes: l1, l2, bn-scale, and lamp, which ranks by l2 across layers. Biases don't count."""

from __future__ import annotations

import numpy as np

from onnxprune.importance.balance import balanced
from onnxprune.importance.base import Scores, View
from onnxprune.importance.registry import criterion

_WEIGHTS = "weights of a convolution or matrix product"


@criterion("l1", reads=_WEIGHTS)
def l1(view: View) -> Scores:
    """Score a unit by the sum of the absolute values of its weights, slots balanced."""
    return balanced(view, "weight", 1)


@criterion("l2", reads=_WEIGHTS)
def l2(view: View) -> Scores:
    """Score a unit by the root of the sum of the squares of its weights, slots balanced."""
    return np.sqrt(balanced(view, "weight", 2))


@criterion("bn-scale", reads="a BatchNormalization (exporters fold them into the convolutions)")
def bn_scale(view: View) -> Scores:
    """Score a unit by the absolute value of its normalisations' scales, slots balanced.

    Network slimming (Liu et al., ICCV 2017). Groups that no normalisation scales can't be scored.
    """
    return balanced(view, "scale", 1)


@criterion("lamp", reads=_WEIGHTS, comparable=True)
def lamp(view: View) -> Scores:
    """Score a unit by its share in the squares of all units of the group that are no smaller.

    Layer-adaptive magnitude (Lee et al., ICLR 2021) with units in the place of single weights. The
    largest unit of every group scores 1, so that no group is emptied before the others, and scores
    of groups compare as they are. Equal units score the same.
    """
    squares = balanced(view, "weight", 2)
    ascending = np.sort(squares)
    no_smaller = np.cumsum(ascending[::-1])[::-1][np.searchsorted(ascending, squares)]
    return np.divide(squares, no_smaller, out=np.zeros_like(squares), where=no_smaller != 0)
