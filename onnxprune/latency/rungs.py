"""What the search may choose from: for each group a few channel counts, each with what leaves and what that loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.budget import Step
from onnxprune.trace.groups import Group
from onnxprune.trace.values import Ids, Mask

Numbers = NDArray[np.float64]
Worth = Callable[[Numbers, int], Numbers]
State = NDArray[np.int64]  # the rung of every choice, shape (choices,)

_LEAST = 1e-6  # share of importance
_MOST = 9  # rungs of a group, the whole one included


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A group and the channel counts that it may have.

    Attributes:
        group: the group.
        removed: for every rung the units that have left; the first rung is the whole group.
        kept: for every rung the importance that is kept, shape (rungs,), descending.
        values: for every rung what that is worth to the search, shape (rungs,), descending.
    """

    group: Group
    removed: tuple[Ids, ...]
    kept: Numbers
    values: Numbers

    def __len__(self) -> int:
        """Count the rungs."""
        return len(self.removed)


def choice(group: Group, scores: Numbers, steps: Sequence[Step], worth: Worth) -> Choice:
    """Make a choice of a group's steps, or of some of them, evenly spread, where there are many.

    Args:
        group: the group.
        scores: importance of its units, shape (units,).
        steps: its way down the ladder.
        worth: what kept importance is worth to the search, see `shared` and `additive`.
    """
    ends = np.unique(np.linspace(0, len(steps), min(_MOST, len(steps) + 1)).round().astype(int)).tolist()
    removed = [np.concatenate([np.empty(0, np.int64), *(s.units for s in steps[:end])]) for end in ends]
    kept = np.array([scores[~np.isin(group.units, units)].sum() for units in removed])
    return Choice(group, tuple(removed), kept, np.minimum.accumulate(worth(kept, len(group.units))))


def shared(kept: Numbers, units: int) -> Numbers:
    """Value the share of a group's importance that is kept by its logarithm, times the group's number of units.

    What a group hands on shrinks by this share, in one group after the other. So a layer that is nearly empty loses
    without bounds, and of two equal groups equal shares leave. A group without any importance counts its rungs.
    """
    share = kept / kept[0] if kept[0] > 0 else np.linspace(1, 0.5, len(kept))
    return np.asarray(units * np.log(np.maximum(share, _LEAST)))


def additive(kept: Numbers, units: int) -> Numbers:
    """Value importance as it is, for scores that are errors of the outputs: what leaves adds up over groups."""
    return kept


def removal(choices: Sequence[Choice], state: State, fixed: Mask) -> Mask:
    """Return for every unit whether it leaves in a state, shape (units,).

    Args:
        choices: the groups' choices.
        state: the rung of each.
        fixed: units that leave in any case.
    """
    removed = fixed.copy()
    for own, rung in zip(choices, state.tolist(), strict=True):
        removed[own.removed[rung]] = True
    return removed


def total_value(choices: Sequence[Choice], state: State) -> float:
    """Return the value of a state."""
    return float(sum(own.values[rung] for own, rung in zip(choices, state.tolist(), strict=True)))


def kept_importance(choices: Sequence[Choice], state: State) -> float:
    """Return the share of the importance of all groups that a state keeps."""
    whole = sum(float(own.kept[0]) for own in choices)
    kept = sum(float(own.kept[rung]) for own, rung in zip(choices, state.tolist(), strict=True))
    return kept / whole if whole > 0 else 1.0
