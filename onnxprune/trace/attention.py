"""Where a graph multiplies activations with activations: the heart of every attention, however it is written."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from onnxprune.operators.registry import operator_key

_FACTORS: Mapping[str, tuple[int, ...]] = {
    "Einsum": (0, 1, 2, 3),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "com.microsoft:FusedMatMul": (0, 1),
    "com.microsoft:MatMulIntegerToFloat": (0, 1),
}
"""Of products, the inputs that are multiplied. Those of quantized ones have scales and zero points besides."""

_ATTENTIONS = frozenset({"Attention", "com.microsoft:GroupQueryAttention", "com.microsoft:MultiHeadAttention"})
_WITH_PROJECTIONS = frozenset({"com.microsoft:Attention", "com.microsoft:QAttention"})
_WITH_WEIGHTS = """
    Conv ConvInteger ConvTranspose GRU Gemm LSTM QLinearConv RNN com.microsoft:DynamicQuantizeLSTM
    com.microsoft:DynamicQuantizeMatMul com.microsoft:FusedConv com.microsoft:FusedGemm com.microsoft:MatMulNBits
    com.microsoft:QGemm com.microsoft:QLinearConv
"""
_CONTRACTIONS = frozenset(_WITH_WEIGHTS.split())
_STARTS = _ATTENTIONS | _WITH_PROJECTIONS | _FACTORS.keys()
_ENDS = _CONTRACTIONS | _STARTS


def attention_nodes(graph: GraphProto) -> set[int]:
    """Return the nodes between products of two activations and the contractions with weights before and behind them.

    Among these, channels that a Reshape split in two are heads and the width of a head.
    """
    operators = [operator_key(node.domain, node.op_type) for node in graph.node]
    if _STARTS.isdisjoint(operators):
        return set()
    constant = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.input and all(n in constant for n in node.input if n):
            constant.update(node.output)

    def activations(node: NodeProto) -> list[str]:
        return [n for n in node.input if n and n not in constant]

    def multiplies(node: NodeProto, operator: str) -> bool:
        factors = [node.input[i] for i in _FACTORS.get(operator, ()) if i < len(node.input)]
        return operator in _ATTENTIONS or sum(n not in constant for n in factors) > 1

    found: set[int] = set()
    wanted: set[str] = set()
    for index in reversed(range(len(graph.node))):
        node, operator = graph.node[index], operators[index]
        if multiplies(node, operator) or (operator not in _ENDS and not wanted.isdisjoint(node.output)):
            found.add(index)
            wanted.update(activations(node))
    made: set[str] = set()
    for index, (node, operator) in enumerate(zip(graph.node, operators, strict=True)):
        starts = operator in _WITH_PROJECTIONS or multiplies(node, operator)
        if starts or (operator not in _ENDS and not made.isdisjoint(activations(node))):
            found.add(index)
            made.update(node.output)
    return found
