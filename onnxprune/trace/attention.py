"""Find products of activations with activations, the pattern common to all attention implementations."""

from __future__ import annotations

from onnx import GraphProto, NodeProto

from onnxprune.model.bodies import is_body_input
from onnxprune.operators.card import Card, card_of


def attention_nodes(graph: GraphProto) -> set[int]:
    """Return the nodes from the contractions with weights before products of two activations to those after them.

    Among these, channels that a Reshape splits in two are heads and the width of a head.
    """
    known = [card_of(node.domain, node.op_type) for node in graph.node]
    if not any(card.attends or len(card.factors) > 1 for card in known):
        return set()
    constant = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.input and all(n in constant for n in node.input if n) and not is_body_input(node):
            constant.update(node.output)

    def activations(node: NodeProto) -> list[str]:
        return [n for n in node.input if n and n not in constant]

    def multiplies(node: NodeProto, card: Card) -> bool:
        factors = [node.input[i] for i in card.factors if i < len(node.input)]
        attends = card.attends and not card.contracts
        return attends or sum(bool(n) and n not in constant for n in factors) > 1

    found: set[int] = set()
    wanted: set[str] = set()
    for index in reversed(range(len(graph.node))):
        node, card = graph.node[index], known[index]
        ends = card.attends or card.contracts
        if multiplies(node, card) or (not ends and not wanted.isdisjoint(node.output)):
            found.add(index)
            wanted.update(activations(node))
    made: set[str] = set()
    for index, (node, card) in enumerate(zip(graph.node, known, strict=True)):
        ends = card.attends or card.contracts
        if card.attends or multiplies(node, card) or (not ends and not made.isdisjoint(activations(node))):
            found.add(index)
            made.update(node.output)
    return found
