"""What the search may choose from: for each group a few channel counts, each with what leaves and what that loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids, Mask
from onnxprune.planning.budget import ReductionStep
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

Numbers = NDArray[np.float64]
State = NDArray[np.int64]  # the rung of every choice, shape (choices,)

_MOST = 9  # rungs of a group, the whole one included


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A group and the channel counts that it may have.

    Attributes:
        group: the group.
        readers: how many layers read its channels.
        removed: for every rung the units that have left; the first rung is the whole group.
        kept: for every rung the share of its importance that is kept, shape (rungs,), descending.
        values: for every rung what that is worth to the search, shape (rungs,), descending.
    """

    group: Group
    readers: int
    removed: tuple[Ids, ...]
    kept: Numbers
    values: Numbers

    def __len__(self) -> int:
        """Count the rungs."""
        return len(self.removed)


def choice(
    graph: ChannelGraph, group: Group, scores: Numbers, steps: Sequence[ReductionStep], *, errors: bool
) -> Choice:
    """Make a choice of a group's steps, or of some of them, evenly spread, where there are many.

    What a rung is worth: scores that are errors of the outputs add up over groups. Importances don't say what a group
    is to the network, only what its units are to the group; then each layer that reads the group loses the square of
    the share of importance that it no longer reads. A layer's error once its weights are refitted grows about so, and
    a residual stream, which many layers read, is worth more than what only one does.

    Args:
        graph: the traced model.
        group: the group.
        scores: importance of its units, shape (units,).
        steps: its way down the ladder.
        errors: whether the scores are errors of the outputs.
    """
    ends = np.unique(np.linspace(0, len(steps), min(_MOST, len(steps) + 1)).round().astype(int)).tolist()
    removed = [np.concatenate([np.empty(0, np.int64), *(s.units for s in steps[:end])]) for end in ends]
    lost = np.array([scores[np.isin(group.units, units)].sum() for units in removed])
    share = lost / scores.sum() if scores.sum() > 0 else np.linspace(0, 0.5, len(lost))
    readers = max(1, sum(slot in graph.summed for slot in group.slots))
    values = -lost if errors else -readers * share**2
    return Choice(group, readers, tuple(removed), 1 - share, np.minimum.accumulate(values))


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
    """Return the share of importance that layers still read in a state, on average over what they read."""
    kept = [own.readers * float(own.kept[rung]) for own, rung in zip(choices, state.tolist(), strict=True)]
    return sum(kept) / sum(own.readers for own in choices)
