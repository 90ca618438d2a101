"""Count the costs of a model: parameters, multiply-accumulates, bytes, activation memory; also before rewriting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from onnx import GraphProto, ModelProto

from onnxprune.channels.ledger import Contraction
from onnxprune.channels.values import Shape
from onnxprune.cost.terms import ShapeOf, is_weight, macs_terms, stored_in, terms_of, weights_of
from onnxprune.model.checks import subgraphs
from onnxprune.model.tensors import byte_size, elements
from onnxprune.operators.contractions import contracts
from onnxprune.shapes import Shapes
from onnxprune.shapes.loops import step_counts
from onnxprune.trace.pruned_graph import PrunedGraph


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one node with weights.

    Attributes:
        node: its name.
        op: its operator.
        weight: shape of its largest weight.
        output: shape of its first output; None if it isn't known.
        params: elements of its weights.
        macs: multiply-accumulates of one run; 0 if they aren't known.
    """

    node: str
    op: str
    weight: Shape
    output: Shape | None
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a model at its concretized input sizes.

    Attributes:
        params: elements of all weights.
        macs: multiply-accumulates of convolutions and matrix products in one run.
        size: bytes of all weights.
        memory: peak bytes of activations alive at once, with nodes run in order.
        layers: cost of every node with weights.
        once: Loops whose number of steps isn't known, so that multiply-accumulates are those of one step.
    """

    params: int
    macs: int
    size: int
    memory: int
    layers: tuple[LayerCost, ...] = ()
    once: tuple[str, ...] = ()

    def totals(self) -> dict[str, int]:
        """Return the four totals by name."""
        return {"params": self.params, "macs": self.macs, "size": self.size, "memory": self.memory}


def cost(kept: PrunedGraph) -> Cost:
    """Return the cost of a traced model after removal, exactly that of the rewritten model."""
    graph = kept.graph
    return _cost(graph.proto, graph.shapes, kept.shape, graph.ledger.contractions)


def model_cost(proto: ModelProto, shapes: Shapes) -> Cost:
    """Count the cost of a model.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
    """
    return _cost(proto, shapes, shapes.shapes.__getitem__, {})


def stored_weights(graph: GraphProto) -> tuple[int, int]:
    """Return the number of elements and the bytes of all weights that a graph and its bodies hold, read or not."""
    tensors = stored_in(graph)
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [a.t for a in node.attribute if a.name == "value" and is_weight(a.t)]
    inner = [stored_weights(body) for node in graph.node for body in subgraphs(node)]
    return sum(map(elements, tensors)) + sum(n for n, _ in inner), sum(map(byte_size, tensors)) + sum(
        b for _, b in inner
    )


def _cost(proto: ModelProto, shapes: Shapes, shape: ShapeOf, contractions: Mapping[int, Contraction]) -> Cost:
    elements = {name: prod(shape(name)) for name in weights_of(proto)}
    layers = tuple(_layers(proto, shapes, shape, elements, contractions))
    return Cost(
        params=sum(elements.values()),
        macs=sum(layer.macs for layer in layers),
        size=terms_of("size", proto, shapes).of(shape),
        memory=terms_of("memory", proto, shapes).of(shape),
        layers=layers,
        once=tuple(name for name, n in step_counts(proto.graph, shapes.shapes, shapes.values).items() if n is None),
    )


def _layers(
    proto: ModelProto,
    shapes: Shapes,
    shape: ShapeOf,
    elements: Mapping[str, int],
    contractions: Mapping[int, Contraction],
) -> Iterator[LayerCost]:
    for node, term in zip(proto.graph.node, macs_terms(proto, shapes, contractions), strict=True):
        macs = term.of(shape) if term is not None else 0
        own = [n for n in dict.fromkeys(node.input) if n in elements]
        output = next(filter(None, node.output), "")
        unsized = own and output not in shapes.shapes and contracts(node)
        if not macs and not unsized:
            continue
        weight = shape(max(own, key=elements.__getitem__)) if own else ()
        params, made = sum(elements[n] for n in own), None if unsized else shape(output)
        yield LayerCost(node.name, node.op_type, weight, made, params, macs)
