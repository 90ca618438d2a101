"""Figures of a traced model and of a plan: what can leave, layer by layer and group by group, and what holds the rest.

Shares are of parameters. An element of a weight *can leave* if a removable slice goes through it. A reason *holds* an
element if it pins a slice through it, and *locks* it if no other slice through it can leave either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.channels.values import Ids, Shape
from onnxprune.cost.cost import Cost, LayerCost, cost
from onnxprune.report.index import KERNEL, Index, Reach
from onnxprune.trace import ChannelGraph, Group
from onnxprune.trace.pruned_graph import PrunedGraph


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A layer and what can leave it.

    Attributes:
        cost: its shapes and cost.
        weighted: whether it has weights (a product of two activations hasn't).
        reads: what can leave of its input channels.
        makes: what can leave of its output channels.
    """

    cost: LayerCost
    weighted: bool
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
        layers: names of the layers with weights that it holds, in order.
        by: the nodes, inputs or outputs that pin, in order.
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
        inputs: the input shapes at which it was counted.
        layers: its layers, in order.
        groups: its groups, in order.
        pins: why channels can't leave; first the reason that locks most parameters.
        prunable: elements of weights that can leave.
    """

    cost: Cost
    inputs: Mapping[str, Shape]
    layers: tuple[LayerSummary, ...]
    groups: tuple[GroupSummary, ...]
    pins: tuple[PinSummary, ...]
    prunable: int

    @property
    def weighted(self) -> int:
        """How many layers have weights."""
        return sum(layer.weighted for layer in self.layers)

    @property
    def reached(self) -> int:
        """How many of the layers with weights can be made smaller."""
        return sum(layer.weighted and layer.reached for layer in self.layers)


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
        blocks: the residual blocks that leave as a whole.
    """

    before: Cost
    after: Cost
    inputs: Mapping[str, Shape]
    groups: tuple[GroupChange, ...]
    blocks: tuple[str, ...] = ()


def summarize(graph: ChannelGraph) -> ModelSummary:
    """Compute the figures of a traced model."""
    index = Index(graph)
    total = cost(PrunedGraph(graph))
    nodes = {node.name: node for node in graph.proto.graph.node}
    return ModelSummary(
        cost=total,
        inputs=graph.shapes.inputs,
        layers=tuple(_layer(index, layer, nodes[layer.node]) for layer in total.layers),
        groups=tuple(map(GroupSummary, graph.groups, index.by_group())),
        pins=summarize_pins(index),
        prunable=sum(weight.touched(~graph.pinned) for weight in index.weights),
    )


def summarize_plan(kept: PrunedGraph) -> PlanSummary:
    """Compute what a plan does, from what remains of the traced model."""
    removed = (int(np.count_nonzero(kept.removed[g.units])) for g in kept.graph.groups)
    return PlanSummary(
        before=cost(PrunedGraph(kept.original)),
        after=cost(kept),
        inputs=kept.graph.shapes.inputs,
        groups=tuple(map(GroupChange, kept.graph.groups, removed)),
        blocks=tuple(block.name for block in kept.blocks),
    )


def summarize_pins(index: Index) -> tuple[PinSummary, ...]:
    """Sum up by code what holds a model's weights; the reason that locks most parameters comes first.

    Kernel positions are left out, for they are no channels, and so is what holds no weights.
    """
    graph, found = index.graph, []
    by: dict[str, dict[str, None]] = {}
    for pin in index.pins:
        by.setdefault(pin.code, {})[pin.node] = None
    rank = {node.name: i for i, node in enumerate(graph.proto.graph.node)}
    for code, pinned in index.pinned_by.items():
        held = {w.name: w.touched(pinned) for w in index.weights}
        readers = {n for name, count in held.items() if count for n in graph.consumers(name)}
        locked = sum(w.among(graph.pinned) - w.among(graph.pinned & ~pinned) for w in index.weights)
        if code != KERNEL and readers:
            layers = tuple(sorted(readers, key=rank.__getitem__))
            found.append(PinSummary(code, layers, tuple(by.get(code, ())), sum(held.values()), locked))
    return tuple(sorted(found, key=lambda p: (-p.locked, -p.held)))


def _layer(index: Index, layer: LayerCost, node: NodeProto) -> LayerSummary:
    """Sort the axes of a layer's weight, or of all its inputs if it has none, into those it reads and those it makes.

    An axis whose channels also stand on the output is one of output channels. In a residual block and in a depthwise
    convolution it is one of input channels as well.
    """
    weight = index.weight_of(node)
    made, given = (_units(index, names) for names in (node.output[:1], node.input[:1]))
    reads, makes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for name in [weight] if weight else node.input:
        for factor in index.factors(name):
            units = index.units(factor)
            is_output = np.isin(units, made).any()
            if is_output:
                makes.append(units)
            if not is_output or np.isin(units, given).any():
                reads.append(units)
    return LayerSummary(
        layer,
        weight is not None,
        index.reach(np.concatenate(reads)),
        index.reach(np.concatenate(makes)),
    )


def _units(index: Index, names: Iterable[str]) -> Ids:
    found = [index.units(factor) for name in names for factor in index.factors(name)]
    return np.concatenate([np.empty(0, np.int64), *found])
