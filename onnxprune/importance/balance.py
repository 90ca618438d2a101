"""How the weights of a group share in its scores.

A group's weights sit in slots of very different size and scale: a convolution's outputs, the next one's inputs, a fully
connected layer with fifty positions for each channel. So what each slot says is first divided by its mean over the
group. No slot then outweighs the others for its size, and scaling a whole layer up and the next one down, which changes
no output, changes no score. This is the group norm of DepGraph (Fang et al., CVPR 2023) with its slots balanced.

Three quarters of a score come from the slots that read the units, a quarter from those that make them. What a removal
takes away is what its readers multiply by, while the size of a unit's own weights says little about the size of its
activations once normalisations are folded in; but it tells a dead unit. Measured with l2 on six small trained models
without any repair, a tenth, a fifth and a third of all channels removed: outputs agree with the dense model's top class
in 50 % of cases on average, in 44 % with equal halves, in 50 % with readers alone, in 35 % by lot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.importance.base import Rows, Scores, View
from onnxprune.importance.elements import Power
from onnxprune.importance.roles import Role

_READING = 0.75


def balanced(view: View, role: Role, power: Power) -> Scores:
    """Return sums of absolute values to a power over all rows of a role, shape (units,).

    Each slot's are relative to their mean over the units, and averaged by its share. NaN without rows of the role; a
    slot of zeros tells nothing apart and adds zero.
    """
    rows = list(view.of(role))
    if not rows:
        return view.unscored
    sums = np.stack([r.power_sums(power) for r in rows])
    means = sums.mean(axis=1, keepdims=True)
    return np.asarray(shares(rows) @ np.divide(sums, means, out=np.zeros_like(sums), where=means != 0))


def shares(rows: Sequence[Rows]) -> Scores:
    """Return the share of every slot in the scores, shape (slots,), adding up to one."""
    reads = np.array([r.reads for r in rows])
    side = np.where(reads, _READING, 1 - _READING) / np.where(reads, reads.sum(), (~reads).sum())
    return np.asarray(side / side.sum())
