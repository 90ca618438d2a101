"""Figures of a traced model: what of its parameters can leave, layer by layer and group by group, and what holds the rest.

Shares are of parameters. A weight's element *can leave* if a removable slice goes through it; it is *locked* if every
slice through it is pinned. A reason *holds* an element if it pins a slice through it, whether or not another slice of
the element is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost import Cost, LayerCost, cost
from onnxprune.kept import Kept
from onnxprune.model import Model
from onnxprune.report.units import share
from onnxprune.trace.graph import ChannelGraph, Group, Pin
from onnxprune.trace.values import Ids, Shape

KERNEL = "OP212"  # positions of a kernel: true of every convolution, so never news

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reach:
    """What can leave along an axis.

    Attributes:
        groups: indices of the groups it has channels of, ascending.
        pins: codes of what pins the others, ascending.
    """

    groups: tuple[int, ...] = ()
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A layer and what can leave it.

    Attributes:
        cost: its shapes and cost.
        reads: what can leave its input channels.
        makes: what can leave its output channels.
    """

    cost: LayerCost
    reads: Reach
    makes: Reach

    @property
    def reached(self) -> bool:
        """Whether the layer can be made smaller."""
        return bool(self.reads.groups or self.makes.groups)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group and its weight.

    Attributes:
        group: the group.
        params: elements that would leave with all of it.
    """

    group: Group
    params: int


@dataclass(frozen=True, slots=True)
class PinSummary:
    """One reason why channels can't leave, over the whole model.

    Attributes:
        code: the reason.
        layers: names of the nodes with weights that it holds.
        by: the nodes, inputs or outputs that pin.
        held: elements with a slice that it pins.
        locked: those of them no slice of which can leave.
    """

    code: str
    layers: tuple[str, ...]
    by: tuple[str, ...]
    held: int
    locked: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What there is to know of a traced model.

    Attributes:
        cost: its cost.
        layers: its layers, in order.
        groups: its groups, in order.
        pins: why channels can't leave; the reason that locks most parameters comes first.
        prunable: elements that can leave.
    """

    cost: Cost
    layers: tuple[LayerSummary, ...]
    groups: tuple[GroupSummary, ...]
    pins: tuple[PinSummary, ...]
    prunable: int

    @property
    def prunable_share(self) -> float:
        """The share of parameters that can leave."""
        return share(self.prunable, self.cost.params)

    @property
    def weighted(self) -> tuple[LayerSummary, ...]:
        """The layers that have weights."""
        return tuple(layer for layer in self.layers if layer.cost.params)


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a plan does to a group.

    Attributes:
        group: the group.
        removed: how many of its units leave.
    """

    group: Group
    removed: int

    @property
    def kept(self) -> int:
        """How many of its units stay."""
        return len(self.group.units) - self.removed


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What a plan does to a model.

    Attributes:
        before: the model's cost.
        after: its cost once pruned.
        inputs: the input shapes at which costs are counted.
        groups: what happens to each group.
    """

    before: Cost
    after: Cost
    inputs: Mapping[str, Shape]
    groups: tuple[GroupChange, ...]


def summarise(graph: ChannelGraph) -> ModelSummary:
    """Compute the figures of a traced model."""
    total = cost(_nothing_removed(graph))
    weights = _Weights(graph)
    removable = ~graph.pinned
    reasons = pinned_by(graph)
    return ModelSummary(
        cost=total,
        layers=tuple(_layer(graph, layer, reasons) for layer in total.layers),
        groups=tuple(
            GroupSummary(g, n) for g, n in zip(graph.groups, weights.by_group(), strict=True)
        ),
        pins=_pin_summaries(graph, weights, reasons),
        prunable=weights.covered(removable),
    )


def summarise_plan(kept: Kept) -> PlanSummary:
    """Compute what a plan does, from what remains of the traced model."""
    graph = kept.graph
    return PlanSummary(
        before=cost(_nothing_removed(graph)),
        after=cost(kept),
        inputs=graph.shapes.inputs,
        groups=tuple(
            GroupChange(g, int(np.count_nonzero(kept.removed[g.units]))) for g in graph.groups
        ),
    )


def file_size(model: Model) -> int:
    """Return the bytes of a model's files on disk; 0 for one that came from memory."""
    files = [f for f in (model.path, *model.data_files) if f is not None]
    return sum(f.stat().st_size for f in files)


def pinned_by(graph: ChannelGraph) -> dict[str, Mask]:
    """Return which units each reason pins, by code, shape (units,) each."""
    found: dict[str, Mask] = {}
    for ids, pin in graph.reasons:
        units = found.setdefault(pin.code, np.zeros(len(graph.pinned), dtype=bool))
        units[graph.unit_of[ids]] = True
    rest = graph.pinned.copy()
    for units in found.values():
        rest &= ~units
    if rest.any():  # nothing pins them but that they are all there is of an axis
        found["OP210"] = found.get("OP210", np.zeros_like(rest)) | rest
    return dict(sorted(found.items()))


def reach(graph: ChannelGraph, ids: Ids, reasons: Mapping[str, Mask]) -> Reach:
    """Tell what can leave of some channels."""
    units = np.unique(graph.unit_of[ids])
    groups = np.unique(group_of_unit(graph)[units])
    codes = [code for code, mask in reasons.items() if code != KERNEL and mask[units].any()]
    return Reach(tuple(int(g) for g in groups if g >= 0), tuple(codes))


def group_of_unit(graph: ChannelGraph) -> Ids:
    """Return the index of every unit's group, -1 for those that can't leave, shape (units,)."""
    found = np.full(len(graph.pinned), -1, dtype=np.int64)
    for group in graph.groups:
        found[group.units] = group.index
    return found


def _nothing_removed(graph: ChannelGraph) -> Kept:
    return Kept(graph, np.zeros(len(graph.pinned), dtype=bool))
