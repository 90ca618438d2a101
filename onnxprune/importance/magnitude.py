"""Magnitudes: l1, l2, bn-scale, and lamp, which ranks by l2 across layers.

A group's weights sit in slots of very different size and scale: a convolution's outputs, the next
one's inputs, a fully connected layer with fifty positions for each channel. So each slot's sums are
first divided by their mean over the group. No slot then outweighs the others, and scaling a whole
layer up and the next one down, which changes no output, changes no score. This is the group norm of
DepGraph (Fang et al., CVPR 2023, section 3.3) with its slots balanced. Biases don't count.
"""

from __future__ import annotations

import numpy as np

from onnxprune.importance.base import Scores, View
from onnxprune.importance.elements import Power
from onnxprune.importance.registry import criterion
from onnxprune.importance.roles import Role

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


def balanced(view: View, role: Role, power: Power) -> Scores:
    """Return sums of absolute values to a power over all rows of a role, shape (units,).

    Each slot's are relative to their mean over the units, and averaged over slots. NaN without
    rows of the role; a slot of zeros tells nothing apart and adds zero.
    """
    sums = [rows.power_sums(power) for rows in view.of(role)]
    if not sums:
        return view.unscored
    table = np.stack(sums)
    means = table.mean(axis=1, keepdims=True)
    relative = np.divide(table, means, out=np.zeros_like(table), where=means != 0)
    return np.asarray(relative.mean(axis=0))
