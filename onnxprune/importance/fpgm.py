"""The geometric median: units that others can stand in for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.importance.base import Rows, Scores, View
from onnxprune.importance.registry import criterion

# Distances held at a time; with more units, the rows are gone through more than once.
_DISTANCES = 1 << 24


@criterion("fpgm", reads="weights of a convolution or matrix product")
def fpgm(view: View) -> Scores:
    """Score a unit by the sum of its distances to all other units of the group.

    Filter pruning via geometric median (He et al., CVPR 2019). A unit is the vector of all its
    weights, slots balanced as for the norms: each is divided by the root mean square of its rows'
    norms, so that squared distances add up over slots.
    """
    slots = list(view.of("weight"))
    if not slots:
        return view.unscored
    units = len(view.group.units)
    step = max(1, _DISTANCES // units)
    blocks = [slice(start, start + step) for start in range(0, units, step)]
    return np.concatenate([_distances(slots, block) for block in blocks])


def _distances(slots: list[Rows], block: slice) -> Scores:
    """Return the sum of distances to all units, for the units in a block."""
    squares = sum(_squared_distances(slot, block) for slot in slots)
    return np.asarray(np.sqrt(squares).sum(axis=1, dtype=np.float64))


def _squared_distances(slot: Rows, block: slice) -> NDArray[np.float32]:
    """Return balanced squared distances of a block's units to all units, shape (block, units)."""
    rows = slot.rows
    norms = slot.power_sums(2)
    mean = norms.mean() or 1.0
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: all pairs at the cost of one matrix product.
    products = rows[block] @ rows.T
    products *= -2
    products += norms[block, None]
    products += norms
    products /= mean
    np.fill_diagonal(products[:, block], 0)  # where rounding would leave its largest share
    return np.maximum(products, 0, out=products).astype(np.float32, copy=False)
