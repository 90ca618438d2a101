"""Candidate widths: a few channel counts per group, with the units that each removes and the value that it keeps."""

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
Config = NDArray[np.int64]  # the index of each group's width among its candidates, shape (groups,); 0 is full width

_MOST = 9  # candidates of a group, full width included


@dataclass(frozen=True, slots=True, eq=False)
class CandidateWidths:
    """The candidate widths of a group, in descending order.

    Attributes:
        group: the group.
        readers: number of layers that read its channels.
        removed: the units that each width removes; the first removes what all widths do, usually nothing.
        kept: the share of the group's importance that each width keeps, shape (widths,), descending.
        values: the value of each width for the search, shape (widths,), descending.
    """

    group: Group
    readers: int
    removed: tuple[Ids, ...]
    kept: Numbers
    values: Numbers

    def __len__(self) -> int:
        """Return the number of widths."""
        return len(self.removed)


def candidate_widths(
    graph: ChannelGraph,
    group: Group,
    scores: Numbers,
    steps: Sequence[ReductionStep],
    *,
    errors: bool,
    least: int = 0,
) -> CandidateWidths:
    """Return a group's candidate widths: those after each reduction step, or evenly spaced ones among them.

    Scores that are output errors add up over groups, so a width's value is the negative error of the removed units.
    Importances are only comparable within a group. Then the value is minus the squared share of removed importance, for
    each layer that reads the group: a layer's error after refitting its weights grows about like that, and a residual
    stream, which many layers read, is worth more than a tensor with one reader.

    Args:
        graph: the traced model.
        group: the group.
        scores: importance of its units, shape (units,).
        steps: its reduction steps.
        errors: whether the scores are output errors.
        least: number of units that every width removes.
    """
    start = next((n for n in range(len(steps) + 1) if sum(len(s.units) for s in steps[:n]) >= least), len(steps))
    ends = np.unique(np.linspace(start, len(steps), min(_MOST, len(steps) - start + 1)).round().astype(int)).tolist()
    removed = [np.concatenate([np.empty(0, np.int64), *(s.units for s in steps[:end])]) for end in ends]
    lost = np.array([scores[np.isin(group.units, units)].sum() for units in removed])
    share = lost / scores.sum() if scores.sum() > 0 else np.linspace(0, 0.5, len(lost))
    readers = max(1, sum(slot in graph.summed for slot in group.slots))
    values = -lost if errors else -readers * share**2
    return CandidateWidths(group, readers, tuple(removed), 1 - share, np.minimum.accumulate(values))


def full_width(candidates: Sequence[CandidateWidths]) -> Config:
    """Return the configuration of the original network, without what all configurations remove."""
    return np.zeros(len(candidates), dtype=np.int64)


def narrowest(candidates: Sequence[CandidateWidths]) -> Config:
    """Return the configuration in which every group has its smallest width."""
    return np.array([len(own) - 1 for own in candidates], dtype=np.int64)


def removal(candidates: Sequence[CandidateWidths], config: Config, fixed: Mask) -> Mask:
    """Return whether each unit is removed in a configuration, shape (units,).

    Args:
        candidates: the groups' candidate widths.
        config: the configuration.
        fixed: units that are removed in all configurations, shape (units,).
    """
    removed = fixed.copy()
    for own, width in zip(candidates, config.tolist(), strict=True):
        removed[own.removed[width]] = True
    return removed


def total_value(candidates: Sequence[CandidateWidths], config: Config) -> float:
    """Return the value of a configuration."""
    return float(sum(own.values[width] for own, width in zip(candidates, config.tolist(), strict=True)))


def kept_importance(candidates: Sequence[CandidateWidths], config: Config) -> float:
    """Return the share of importance that a configuration keeps, averaged over the layers that read it."""
    kept = [own.readers * float(own.kept[width]) for own, width in zip(candidates, config.tolist(), strict=True)]
    return sum(kept) / sum(own.readers for own in candidates)
