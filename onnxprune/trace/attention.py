"""Where a graph multiplies activations with activations: the heart of every attention, however it is written."""

from __future__ import annotations

from onnx import GraphProto

_PRODUCTS = frozenset(
    [
        "Attention",
        "Einsum",
        "FusedMatMul",
        "GroupQueryAttention",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MultiHeadAttention",
        "QLinearMatMul",
    ]
)
_CONTRACTIONS = _PRODUCTS | {"Conv", "ConvTranspose", "Gemm"}


def attention_nodes(graph: GraphProto) -> set[int]:
    """Return the nodes between products of two activations and the contractions with weights before and behind them.

    Among these, channels that a Reshape split in two are heads and the width of a head.
    """
    constant = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.input and all(n in constant for n in node.input if n):
            constant.update(node.output)
    found: set[int] = set()
    wanted: set[str] = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        activations = [n for n in node.input if n and n not in constant]
        product = node.op_type in _PRODUCTS and len(activations) > 1
        if not product and (node.op_type in _CONTRACTIONS or wanted.isdisjoint(node.output)):
            continue
        found.add(index)
        wanted.update(activations)
    made: set[str] = set()
    for index, node in enumerate(graph.node):
        activations = [n for n in node.input if n and n not in constant]
        product = node.op_type in _PRODUCTS and len(activations) > 1
        if product or (node.op_type not in _CONTRACTIONS and not made.isdisjoint(activations)):
            found.add(index)
            made.update(node.output)
    return found
