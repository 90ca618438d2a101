"""The geometric median: units that others can stand in for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.importance.balance import shares
from onnxprune.importance.base import Rows, Scores, View
from onnxprune.importance.registry import criterion

# Distances held at a time; with more units, the rows are gone through more than once.
_DISTANCES = 1 << 24


@criterion("fpgm", reads="weights of a convolution or matrix product")
def fpgm(view: View) -> Scores:
    """Score a unit by the sum of its distances to all other units of the group.

    Filter pruning via geometric median (He et al., CVPR 2019). A unit is the vector of all its
    weights, slots balanced as for the norms: squared distances are relative to the mean square of a
    slot's rows, and averaged over slots by their shares.
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
    shared = zip(shares(slots).tolist(), slots, strict=True)
    squares = sum(share * _squared_distances(slot, block) for share, slot in shared)
    return np.asarray(np.sqrt(squares).sum(axis=1, dtype=np.float64))


def _squared_distances(slot: Rows, block: slice) -> NDArray[np.floating[Any]]:
    """Return balanced squared distances of a block's units to all units, shape (block, units)."""
    rows = slot.rows
    norms = slot.power_sums(2)
    mean = float(norms.mean()) or 1.0
    norms = (norms / mean).astype(rows.dtype)
    rows = np.divide(rows, mean**0.5, out=rows if rows.flags.writeable else None)  # large ones are copies already
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: all pairs at the cost of one matrix product.
    squares = rows[block] @ rows.T
    squares *= -2
    squares += norms[block, None]
    squares += norms
    np.fill_diagonal(squares[:, block], 0)  # where rounding would weigh most
    return np.asarray(np.maximum(squares, 0, out=squares))
