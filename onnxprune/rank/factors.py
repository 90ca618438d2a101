"""Write layers as two: the rewriting of the graph, and the layers that it fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.cost.cost import LayerCost, cost, model_cost
from onnxprune.errors import PlanError
from onnxprune.model.checks import describe
from onnxprune.model.graph import names_in, unique, with_nodes
from onnxprune.model.tensors import Weights
from onnxprune.operators.linear import LinearLayer
from onnxprune.recover.layers import LeftOut, find_layers, left_out
from onnxprune.recover.pairs import split
from onnxprune.shapes import Shapes
from onnxprune.trace.pruned_graph import PrunedGraph

_WIDEST = 4096  # outputs or features, on the shorter side of a weight, up to which it is decomposed in a minute


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A layer that can be two.

    Attributes:
        layer: the layer.
        cost: its cost.
        outputs: its number of outputs.
        features: its number of inputs times kernel taps.
    """

    layer: LinearLayer
    cost: LayerCost
    outputs: int
    features: int

    @property
    def full(self) -> int:
        """The rank of the weight at most."""
        return min(self.outputs, self.features)

    def params(self, rank: int) -> int:
        """Return the number of weights of the two layers, without the bias."""
        return rank * (self.outputs + self.features)

    def macs(self, rank: int) -> int:
        """Return the multiply-accumulates of the two layers."""
        return rank * (self.cost.macs // self.outputs + prod(self.cost.output or ()))

    @property
    def most(self) -> int:
        """The largest rank at which the two cost less than the one, in weights and in multiply-accumulates."""
        per = self.params(1), self.macs(1)
        return min((self.outputs * self.features - 1) // per[0], (self.cost.macs - 1) // per[1])


@dataclass(frozen=True, slots=True)
class Factored:
    """A model some of whose layers are two.

    Attributes:
        proto: the model.
        original: the model before.
        ranks: the number of channels between the two, by the layer's node, which is now the second one.
        firsts: the node of the first, likewise.
    """

    proto: ModelProto
    original: ModelProto
    ranks: Mapping[str, int]
    firsts: Mapping[str, str]

    @property
    def weights(self) -> frozenset[str]:
        """The weights of the two layers each."""
        before, after = ({t.name for t in model.graph.initializer} for model in (self.original, self.proto))
        return frozenset(after - before)

    def cheaper(self, kept: PrunedGraph) -> dict[str, int]:
        """Return the ranks of the layers that cost less as two also once channels left, by the layer's node.

        Args:
            kept: the traced model and what was removed from it.
        """
        costs = {layer.node: layer for layer in cost(kept).layers}
        nodes = {node.name: node for node in self.proto.graph.node}
        found = {}
        for name, rank in self.ranks.items():
            first, second = (costs[node] for node in (self.firsts[name], name))
            axis = -1 if nodes[self.firsts[name]].op_type == "MatMul" else 1
            between, outputs = (kept.shape(nodes[n].output[0])[axis] for n in (self.firsts[name], name))
            one = outputs / between  # of the first, which it would be with all outputs
            sizes = prod(first.weight), prod(second.weight)
            if first.macs + second.macs < one * first.macs and sum(sizes) < one * sizes[0]:
                found[name] = rank
        return found

    def __str__(self) -> str:
        """Return how many layers are two."""
        return f"{len(self.ranks)} layer{'s' if len(self.ranks) > 1 else ''} in two by rank"


def find_split(proto: ModelProto, shapes: Shapes) -> tuple[list[SplitLayer], list[LeftOut]]:
    """Return the layers that can be two, and those with weights that can't, with the reasons.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
    """
    weights, found, others = Weights(proto), list[SplitLayer](), list[LeftOut]()
    costs = {layer.node: layer for layer in model_cost(proto, shapes).layers}
    for layer in find_layers(proto):
        known = costs.get(layer.node.name)
        reason = _why_not(layer, weights, known)
        if reason is None and known is not None:
            shape = weights.shape(layer.weight)
            outputs = int(layer.outputs(shape).max()) + 1
            split_layer = SplitLayer(layer, known, outputs, layer.features(shape))
            if split_layer.full > _WIDEST:
                reason = f"its weight is larger than {_WIDEST} on both sides"
            elif split_layer.most < 1:
                reason = "two layers with a single channel between cost as much"
            else:
                found.append(split_layer)
        if reason is not None:
            others.append(LeftOut(layer.node.name, layer.node.op_type, reason))
    everything = {name for node in proto.graph.node for name in node.input}
    return found, [*others, *left_out(proto, everything)]


def rank_of(proto: ModelProto, shapes: Shapes, node: str) -> int | str | None:
    """Return the largest rank at which a node is cheaper as two, or why it isn't; None if it has no weights.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
        node: the node's name.
    """
    found, others = find_split(proto, shapes)
    known: dict[str, int | str] = {other.node: other.reason for other in others}
    return (known | {split.layer.node.name: split.most for split in found}).get(node)


def _why_not(layer: LinearLayer, weights: Weights, known: LayerCost | None) -> str | None:
    if layer.groups > 1:
        return "it has groups of channels"
    if known is None or known.output is None or not known.macs:
        return "its cost isn't known"
    if not np.isfinite(weights[layer.weight].astype(np.float64)).all():
        return "a weight isn't finite"
    return None


def factor(proto: ModelProto, shapes: Shapes, ranks: Mapping[str, int]) -> Factored:
    """Return a model some of whose layers are two, with the product of their weights as near as possible to the one.

    The result depends on the model and the ranks alone.

    Args:
        proto: the normalized model. It isn't changed.
        shapes: its concretized shapes.
        ranks: the number of channels between the two, by the layer's node.

    Raises:
        PlanError: a layer can't be two, or isn't cheaper so (OP307).
    """
    splits, others = find_split(proto, shapes)
    known, reasons = {s.layer.node.name: s for s in splits}, {o.node: o.reason for o in others}
    weights, taken = Weights(proto), names_in(proto.graph)
    made: dict[str, tuple[NodeProto, NodeProto]] = {}
    tensors: list[TensorProto] = []
    gone = set[str]()
    for name, rank in ranks.items():
        if name not in known:
            cause = (
                f"the plan makes two layers of one that can't be: {reasons.get(name, 'the model has none so named')}"
            )
            raise PlanError("OP307", cause, where=f'node "{name}"')
        if not 1 <= rank <= known[name].most:
            cause = (
                f"the plan makes two layers with {rank} channels between: at most {known[name].most} make it cheaper"
            )
            raise PlanError("OP307", cause, where=describe(known[name].layer.node))
        first, second, new = _pair(known[name].layer, weights[known[name].layer.weight], rank, taken)
        made[name] = first, second
        tensors += new
        gone.add(known[name].layer.weight)

    def nodes() -> Iterator[NodeProto]:
        for node in proto.graph.node:
            yield from made.get(node.name, (node,))

    kept: Iterable[TensorProto] = (t for t in proto.graph.initializer if t.name not in gone)
    result = with_nodes(proto, nodes(), [*kept, *tensors])
    inputs = [entry for entry in result.graph.input if entry.name not in gone]  # of old models, weights are inputs too
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    return Factored(result, proto, dict(ranks), {name: first.name for name, (first, _) in made.items()})


def _pair(
    layer: LinearLayer, weight: NDArray[Any], rank: int, taken: set[str]
) -> tuple[NodeProto, NodeProto, list[TensorProto]]:
    """Return two nodes in place of a layer's, with their weights."""
    left, right = split(layer.matrix(weight)[0], rank)
    node, between, name = layer.node, unique(f"{layer.y}_rank", taken), unique(f"{layer.node.name}/first", taken)
    first, second = NodeProto(), NodeProto()
    if layer.kernel:  # a window with fewer outputs, then a single point
        first.CopyFrom(node)
        second.CopyFrom(helper.make_node("Conv", [], [], kernel_shape=[1] * len(layer.kernel)))
        narrow = np.empty(layer.with_outputs(weight.shape, rank), weight.dtype)
        values = layer.weight_of(right[None], narrow), left.reshape(*left.shape, *[1] * len(layer.kernel))
    else:
        first.op_type = "MatMul"
        second.CopyFrom(node)
        values = right.T, layer.weight_of(left[None], weight)
    tensors = [
        numpy_helper.from_array(
            np.ascontiguousarray(value, dtype=weight.dtype), unique(f"{layer.weight}_{part}", taken)
        )
        for part, value in zip(("first", "second"), values, strict=True)
    ]
    for made, label, inputs, output in (
        (first, name, [layer.x, tensors[0].name], between),
        (second, node.name, [between, tensors[1].name, *([layer.bias] if layer.bias else [])], layer.y),
    ):
        del made.input[:], made.output[:]
        made.name = label
        made.input.extend(inputs)
        made.output.append(output)
    return first, second, tensors
