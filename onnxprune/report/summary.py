"""Summaries of a traced model and of a plan: what can be removed, by layer and by group, and what pins the rest.

An element of a weight is *removable* if it lies in a removable slice. A reason *holds* an element if it pins a slice
with it, and *locks* the element if no other slice with it is removable either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels.ledger import Pin
from onnxprune.channels.values import Ids, Shape
from onnxprune.cost.cost import Cost, LayerCost, cost
from onnxprune.report.index import KERNEL, Index, Reach
from onnxprune.report.labels import PLAIN, Labels
from onnxprune.trace import ChannelGraph, Group
from onnxprune.trace.pruned_graph import PrunedGraph, ResizedState


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A layer and what can be removed of it.

    Attributes:
        cost: its shapes and cost.
        weighted: whether it has weights; a product of two activations has none.
        reads: what can be removed of its input channels.
        makes: what can be removed of its output channels.
        number: its number, see `Labels`.
    """

    cost: LayerCost
    weighted: bool
    reads: Reach
    makes: Reach
    number: int = 0

    @property
    def reached(self) -> bool:
        """Whether the layer can be made smaller."""
        return bool(self.reads.groups or self.makes.groups)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group and its size.

    Attributes:
        group: the group.
        params: number of parameters that removing all of it removes.
    """

    group: Group
    params: int


@dataclass(frozen=True, slots=True)
class PinSummary:
    """One reason why channels can't be removed, summed over the model.

    Attributes:
        code: the reason.
        layers: names of the layers with weights that it holds, in graph order.
        by: the nodes, inputs or outputs that pin, in graph order.
        held: number of elements in a slice that it pins.
        locked: number of those in no removable slice.
    """

    code: str
    layers: tuple[str, ...]
    by: tuple[str, ...]
    held: int
    locked: int


@dataclass(frozen=True, slots=True)
class StateSummary(ResizedState):
    """A state and its shapes.

    Attributes:
        held: why nothing of it can leave; None if something can.
    """

    held: Pin | None = None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Summary of a traced model.

    Attributes:
        cost: its cost.
        inputs: the input shapes at which the cost was counted.
        layers: its layers, in graph order.
        groups: its groups, by index.
        pins: why channels can't be removed; first the reason that locks most parameters.
        prunable: number of removable elements of weights.
        states: the states that may shrink.
        labels: how its nodes are called in tables.
    """

    cost: Cost
    inputs: Mapping[str, Shape]
    layers: tuple[LayerSummary, ...]
    groups: tuple[GroupSummary, ...]
    pins: tuple[PinSummary, ...]
    prunable: int
    states: tuple[StateSummary, ...] = ()
    labels: Labels = PLAIN

    @property
    def weighted(self) -> int:
        """Number of layers with weights."""
        return sum(layer.weighted for layer in self.layers)

    @property
    def reached(self) -> int:
        """Number of layers with weights that can be made smaller."""
        return sum(layer.weighted and layer.reached for layer in self.layers)


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a plan does to a group.

    Attributes:
        group: the group.
        removed: number of its units that are removed.
    """

    group: Group
    removed: int

    @property
    def kept(self) -> int:
        """Number of its units that are kept."""
        return len(self.group.units) - self.removed


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """A layer before and after pruning.

    Attributes:
        number: its number, see `Labels`.
        name: its node.
        op: its operator.
        shapes: sizes of its weight before and after; empty after if it was removed.
        params: elements of its weights, before and after.
        macs: its multiply-accumulates, before and after.
    """

    number: int
    name: str
    op: str
    shapes: tuple[Shape, Shape]
    params: tuple[int, int]
    macs: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What a plan does to a model.

    Attributes:
        before: the model's cost.
        after: the pruned model's cost.
        inputs: the input shapes at which costs are counted.
        groups: the change of each group.
        blocks: names of the residual blocks that are removed.
        states: the states that may shrink, with their shapes.
        changes: what is changed of the network before channels are removed, in sentences.
        ranks: the number of channels between the two layers that replace one, by its node.
        labels: how the nodes are called in tables.
    """

    before: Cost
    after: Cost
    inputs: Mapping[str, Shape]
    groups: tuple[GroupChange, ...]
    blocks: tuple[str, ...] = ()
    states: tuple[StateSummary, ...] = ()
    changes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    labels: Labels = PLAIN

    @property
    def layers(self) -> tuple[LayerWidths, ...]:
        """Every layer before and after, in graph order."""
        kept = {layer.node: layer for layer in self.after.layers}
        gone = LayerCost("", "", (), None, 0, 0)
        pairs = ((old, kept.get(old.node, gone)) for old in self.before.layers)
        return tuple(
            LayerWidths(
                self.labels.numbers.get(old.node, 0),
                *(old.node, old.op),
                shapes=(old.weight, new.weight),
                params=(old.params, new.params),
                macs=(old.macs, new.macs),
            )
            for old, new in pairs
        )


def summarize(graph: ChannelGraph) -> ModelSummary:
    """Return the summary of a traced model."""
    index = Index(graph)
    total, labels = cost(PrunedGraph(graph)), Labels.of(graph.proto)
    return ModelSummary(
        cost=total,
        inputs=graph.shapes.inputs,
        layers=tuple(_layer(index, layer, labels.numbers[layer.node]) for layer in total.layers),
        groups=tuple(map(GroupSummary, graph.groups, index.by_group())),
        pins=summarize_pins(index),
        prunable=sum(weight.touched(~graph.pinned) for weight in index.weights),
        states=summarize_states(PrunedGraph(graph)),
        labels=labels,
    )


def summarize_plan(kept: PrunedGraph) -> PlanSummary:
    """Return the summary of a plan that was applied to a traced model."""
    removed = (int(np.count_nonzero(kept.removed[g.units])) for g in kept.graph.groups)
    return PlanSummary(
        before=cost(PrunedGraph(kept.original)),
        after=cost(kept),
        inputs=kept.graph.shapes.inputs,
        groups=tuple(map(GroupChange, kept.graph.groups, removed)),
        blocks=tuple(block.name for block in kept.blocks),
        states=summarize_states(kept),
        labels=Labels.of(kept.original.proto),
    )


def summarize_states(kept: PrunedGraph) -> tuple[StateSummary, ...]:
    """Return the states that may shrink, with their shapes and what holds them."""
    return tuple(
        StateSummary(s.input, s.output, s.before, s.after, s.kept, _held(kept.graph, s)) for s in kept.states()
    )


def _held(graph: ChannelGraph, state: ResizedState) -> Pin | None:
    """Return what holds most of a state, if nothing of it can leave."""
    ids = [factor.ids.ravel() for factor in graph.values[state.input].factors]
    if not ids:
        return Pin("OP202", f'graph input "{state.input}"', "its sizes are the caller's")
    units = np.unique(graph.unit_of[np.concatenate(ids)])
    if not graph.pinned[units].all():
        return None
    held, pin = max(
        ((np.isin(units, own).sum(), pin) for own, pin in graph.reasons()), key=lambda r: int(r[0]), default=(0, None)
    )
    return pin if held else graph.pins(int(units[0]))[0]


def summarize_pins(index: Index) -> tuple[PinSummary, ...]:
    """Return what pins a model's weights, by reason; the reason that locks most parameters comes first.

    Kernel positions, which are no channels, and reasons that hold no weights are left out.
    """
    pinned, found = index.graph.pinned, []
    for code, mask in index.pinned_by.items():
        held = [w.touched(mask) for w in index.weights]
        readers = {name for w, elements in zip(index.weights, held, strict=True) if elements for name in w.readers}
        if code != KERNEL and readers:
            locked = sum(w.among(pinned) - w.among(pinned & ~mask) for w in index.weights)
            layers = tuple(name for name in index.nodes if name in readers)
            by = dict.fromkeys(pin.node for pin in index.pins if pin.code == code)
            found.append(PinSummary(code, layers, tuple(by), sum(held), locked))
    return tuple(sorted(found, key=lambda p: (-p.locked, -p.held)))


def _layer(index: Index, layer: LayerCost, number: int) -> LayerSummary:
    """Sort the axes of a layer's weight, or of its inputs if it has none, into those it reads and those it makes.

    It makes the channels that are also on its output. In residual blocks and depthwise convolutions it reads them, too.
    """
    node = index.nodes[layer.node]
    weight = index.weight_of(node)
    output, data = index.units_on(node.output[:1]), index.units_on(node.input[:1])
    reads, makes = list[Ids](), list[Ids]()
    for name in [weight] if weight else node.input:
        for factor in index.factors(name):
            units = index.units(factor)
            is_output = np.isin(units, output).any()
            if is_output:
                makes.append(units)
            if not is_output or np.isin(units, data).any():
                reads.append(units)
    return LayerSummary(layer, weight is not None, index.reach(reads), index.reach(makes), number)
