"""Multiply-accumulates of a node, from the spec of its trace or from its card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod

from onnx import ModelProto, NodeProto

from onnxprune.channels.ledger import Contraction
from onnxprune.channels.values import Shape
from onnxprune.operators.card import Card, card_of
from onnxprune.operators.node import Node
from onnxprune.operators.traced import ShapeUnknown, TraceNode, Walk

Macs = tuple[tuple[str, ...], Callable[..., int]]


def contracts(node: NodeProto) -> bool:
    """Whether a node sums products over channels, within an attention or not."""
    return _counted(card_of(node.domain, node.op_type))


def layer_names(proto: ModelProto) -> list[str]:
    """Return the names of a normalized model's layers, which are its contractions, in graph order; L1 is the first."""
    return [node.name for node in proto.graph.node if contracts(node)]


def layer_of_number(text: str, proto: ModelProto) -> str | None:
    """Return the name of the layer that a number such as "L17" stands for.

    Returns:
        None if the text isn't a number of a layer of this model, or is the name of a node.
    """
    number = re.fullmatch(r"L([1-9]\d{0,6})", text)
    if number is None or any(node.name == text for node in proto.graph.node):
        return None
    names = layer_names(proto)
    return names[int(number[1]) - 1] if int(number[1]) <= len(names) else None


def multiply_accumulates(
    node: NodeProto, shapes: Mapping[str, Shape], recorded: Contraction | None = None
) -> Macs | None:
    """Return the tensors whose shapes determine the multiply-accumulates of a node, and a function that counts them.

    The function takes these shapes in the same order, and returns 0 where they don't fit the operator.

    Args:
        node: the node.
        shapes: shapes of its tensors, to evaluate its spec at.
        recorded: what a trace recorded of it; by default it is traced by itself.

    Returns:
        None for operators that aren't contractions, and where the shapes don't fit.
    """
    card = card_of(node.domain, node.op_type)
    output = next((name for name in node.output if name), None)
    if output is None or not _counted(card):
        return None
    return (
        _by_card(node, card, output)
        if card.macs is not None
        else _by_spec(node, recorded or _contraction(node, card, shapes), output)
    )


def _counted(card: Card) -> bool:
    return card.contracts or card.macs is not None


def _by_spec(node: NodeProto, found: Contraction | None, output: str) -> Macs | None:
    if found is None:
        return None
    axes = [axis for _, axis in found.axes]

    def count(made: Shape, *operands: Shape) -> int:
        try:
            return prod(made) * prod(shape[axis] for shape, axis in zip(operands, axes, strict=True))
        except IndexError:
            return 0

    return (output, *(node.input[i] for i, _ in found.axes)), count


def _contraction(node: NodeProto, card: Card, shapes: Mapping[str, Shape]) -> Contraction | None:
    """Trace a node by itself, without channels, and return what its spec sums over."""
    op = TraceNode(Walk(shapes), 0, node, records=True)
    try:
        if card.trace is not None:
            card.trace(op)
    except (ShapeUnknown, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    return op.channels.contractions.get(0)


def _by_card(node: NodeProto, card: Card, output: str) -> Macs:
    seen, formula = Node(node), card.macs
    assert formula is not None
    given = [i for i, name in enumerate(node.input) if name]

    def count(*shapes: Shape) -> int:
        *known, made = shapes
        inputs: list[Shape] = [()] * len(node.input)
        for i, shape in zip(given, known, strict=True):
            inputs[i] = shape
        try:
            return formula(seen, inputs, made)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return 0

    return (*(node.input[i] for i in given), output), count
