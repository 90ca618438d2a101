"""What initialisers are to the nodes that read them: weights, a normalisation's scale, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto
from onnx.helper import get_attribute_value

from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.registry import operator_key

Role: TypeAlias = Literal["weight", "scale", "vector"]

_NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
    | {"RMSNormalization", "SimplifiedLayerNormalization"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """What a model's initialisers are for.

    Attributes:
        roles: by name: "weight" of a contraction, "scale" of a normalisation, "vector" for anything else.
        read: for every channel id whether a contraction sums over its weights, shape (ids,). Such weights read a
            channel; the others make it.
    """

    roles: Mapping[str, Role]
    read: NDArray[np.bool_]


def uses(graph: ChannelGraph) -> Uses:
    """Tell what every initialiser is for.

    Initialisers are followed through the nodes that compute constants from constants (Transpose, Reshape, Cast,
    DequantizeLinear, Mul...) to whatever reads the result together with activations.
    """
    sizes = {name: prod(shape) for name, shape in graph.shapes.shapes.items()}
    sizes |= {t.name: prod(t.dims) for t in graph.proto.graph.initializer}
    roles: dict[str, Role] = {t.name: "vector" for t in graph.proto.graph.initializer}
    read = np.zeros(len(graph.unit_of), dtype=bool)
    # The initialisers whose elements a constant tensor holds.
    origins: dict[str, tuple[str, ...]] = {name: (name,) for name in roles}
    for node in graph.proto.graph.node:
        if all(name in origins for name in node.input if name):
            held = {o for i in _data_inputs(node, sizes) for o in origins[node.input[i]]}
            origins.update(dict.fromkeys(filter(None, node.output), tuple(held)))
            continue
        for i, name in enumerate(node.input):
            value = graph.values.get(name)
            if name not in origins or value is None:
                continue
            summed = _summed(node, i, len(value.shape))
            for factor in value.factors:
                if summed and not summed.isdisjoint(factor.axes):
                    read[factor.ids] = True
            for origin in origins[name]:
                if summed is not None:
                    roles[origin] = "weight"
                elif i == 1 and node.op_type in _NORMALISATIONS and roles[origin] == "vector":
                    roles[origin] = "scale"
    return Uses(roles, read)


def _summed(node: NodeProto, i: int, rank: int) -> set[int] | None:
    """Return the axes of input ``i`` that products with activations are summed over; None if there are none."""
    match operator_key(node.domain, node.op_type), i:
        case "Conv", 1:
            return {1}
        case "ConvTranspose", 1:
            return {0}
        case "Gather", 0:  # a product with one-hot rows
            return {_attribute(node, "axis", 0) % max(rank, 1)}
        case "Gemm", 0:
            return {0 if _attribute(node, "transA", 0) else 1}
        case "Gemm", 1:
            return {1 if _attribute(node, "transB", 0) else 0}
        case "MatMul", 0:
            return {rank - 1}
        case "MatMul", 1:
            return {max(rank - 2, 0)}
        case ("GRU" | "LSTM" | "RNN"), (1 | 2):
            return {2}
        case "Einsum", _:
            return _summed_letters(_attribute(node, "equation", b"").decode(), i, rank)
    return None


def _summed_letters(equation: str, i: int, rank: int) -> set[int]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    letters = left.replace("...", "").replace(",", "")
    kept = set(right) if arrow else {letter for letter in letters if letters.count(letter) == 1}
    before, dots, after = left.split(",")[i].partition("...")
    axes = {axis: letter for axis, letter in enumerate(before)}
    axes |= {rank - len(after) + k: letter for k, letter in enumerate(after) if dots}
    return {axis for axis, letter in axes.items() if letter not in kept}


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _data_inputs(node: NodeProto, sizes: Mapping[str, int]) -> list[int]:
    """Return the inputs that a node moves: its largest (the others are scales, shapes, indices)."""
    given = [i for i, name in enumerate(node.input) if name]
    if node.op_type == "Concat":
        return given
    largest = max((sizes.get(node.input[i], 0) for i in given), default=0)
    return [i for i in given if sizes.get(node.input[i], 0) == largest]
