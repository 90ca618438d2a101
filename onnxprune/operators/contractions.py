"""Multiply-accumulates of one run of a node, as the spec of its trace or its card says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels.ledger import Channels, Contraction
from onnxprune.channels.values import Shape, Value
from onnxprune.operators.card import Card, card_of
from onnxprune.operators.node import Node
from onnxprune.operators.traced import ShapeUnknown, TraceNode


def contracts(node: NodeProto) -> bool:
    """Whether a node sums products over channels, within an attention or not."""
    return _counted(card_of(node.domain, node.op_type))


def multiply_accumulates(
    node: NodeProto, shapes: Mapping[str, Shape]
) -> tuple[tuple[str, ...], Callable[..., int]] | None:
    """Return the tensors whose shapes tell the multiply-accumulates of a node, and a function that counts them.

    The function takes the shapes in the same order, and returns 0 where they don't fit the operator.

    Args:
        node: the node.
        shapes: shapes of its tensors, at which it is looked at once.

    Returns:
        None for operators that aren't contractions, and where the shapes don't fit.
    """
    card = card_of(node.domain, node.op_type)
    output = next((name for name in node.output if name), None)
    if output is None or not _counted(card):
        return None
    return _by_card(node, card, output) if card.macs is not None else _by_spec(node, card, output, shapes)


def _counted(card: Card) -> bool:
    return card.contracts or card.macs is not None


def _by_spec(
    node: NodeProto, card: Card, output: str, shapes: Mapping[str, Shape]
) -> tuple[tuple[str, ...], Callable[..., int]] | None:
    found = _contraction(node, card, shapes)
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
    """Trace a node by itself, without channels, for what its spec sums over."""

    def look(name: str) -> Value:
        if name not in shapes:
            raise ShapeUnknown(name)
        return Value(shapes[name])

    def read(name: str) -> NDArray[Any] | None:
        return None

    def varies(name: str) -> NDArray[np.bool_]:
        return np.zeros((), dtype=bool)

    ledger = Channels()
    op = TraceNode(0, node, 1, True, look, read, shapes, ledger, None, "channels", varies, {})
    try:
        if card.trace is not None:
            card.trace(op)
    except (ShapeUnknown, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    return ledger.contractions.get(0)


def _by_card(node: NodeProto, card: Card, output: str) -> tuple[tuple[str, ...], Callable[..., int]]:
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
