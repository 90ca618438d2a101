"""Multiply-accumulates of one run of a node: one short formula per contraction, over shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

from onnx import NodeProto
from onnx.helper import get_attribute_value

from onnxprune.channels.values import Shape
from onnxprune.operators.registry import operator_key

Attributes = Mapping[str, Any]
_Formula = Callable[[list[Shape], Shape, Attributes], int]


def contraction(node: NodeProto) -> tuple[tuple[str, ...], Callable[..., int]] | None:
    """Return the tensors whose shapes tell the multiply-accumulates of a node, and a function that counts them.

    The function takes the shapes in the same order, and gives 0 where they don't fit the operator. None for operators
    that aren't contractions.
    """
    formula = _MACS.get(operator_key(node.domain, node.op_type))
    output = next((name for name in node.output if name), None)
    if formula is None or output is None:
        return None
    given = [i for i, name in enumerate(node.input) if name]
    blank: list[Shape] = [()] * len(node.input)
    attributes = {a.name: get_attribute_value(a) for a in node.attribute}

    def count(*shapes: Shape) -> int:
        *known, made = shapes
        inputs = blank.copy()
        for i, shape in zip(given, known, strict=True):
            inputs[i] = shape
        try:
            return formula(inputs, made, attributes)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return 0

    return (*(node.input[i] for i in given), output), count


def _conv(x: list[Shape], y: Shape, attributes: Attributes, weight: int = 1) -> int:
    return prod(y) * prod(x[weight][1:])


def _conv_transpose(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    return prod(x[0]) * prod(x[1][1:])


def _matmul(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    return prod(y) * x[0][-2 if attributes.get("transA") else -1]


def _einsum(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    terms = attributes["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for dims, term in zip(x, terms, strict=True):
        head, dots, tail = term.partition("...")
        spare = len(dims) - len(head) - len(tail)
        letters = [*head, *(f".{i}" for i in range(spare, 0, -1) if dots), *tail]
        for letter, n in zip(letters, dims, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), n)
    return prod(sizes.values())


def _recurrent(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    steps, batch, _ = x[0]
    return steps * batch * (prod(x[1]) + prod(x[2]))


def _attention(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    """Scores, then their product with the values; the outputs are as wide as the values of all heads."""
    queries, keys = prod(x[0]), x[1][-2]
    return queries * keys + prod(y) * keys


def _grouped_queries(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    """As an attention; queries, keys and values may come in one tensor."""
    keys = x[0][1] + (x[3][2] if len(x) > 3 and x[3] else 0)
    return 2 * prod(y) * keys


def _packed_attention(x: list[Shape], y: Shape, attributes: Attributes) -> int:
    """The projection, then scores and their product with the values."""
    batch, steps, _ = x[0]
    return batch * steps * prod(x[1]) + 2 * prod(y) * steps


_MACS: dict[str, _Formula] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _matmul,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearConv": partial(_conv, weight=3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "com.microsoft:Attention": _packed_attention,
    "com.microsoft:DynamicQuantizeLSTM": _recurrent,
    "com.microsoft:DynamicQuantizeMatMul": _matmul,
    "com.microsoft:FusedConv": _conv,
    "com.microsoft:FusedGemm": _matmul,
    "com.microsoft:FusedMatMul": _matmul,
    "com.microsoft:GroupQueryAttention": _grouped_queries,
    "com.microsoft:MatMulIntegerToFloat": _matmul,
    "com.microsoft:MatMulNBits": _matmul,
    "com.microsoft:MultiHeadAttention": _attention,
    "com.microsoft:QAttention": _packed_attention,
    "com.microsoft:QGemm": _matmul,
    "com.microsoft:QLinearConv": partial(_conv, weight=3),
}
