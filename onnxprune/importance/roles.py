"""What an initialiser is to its readers: a weight, a normalisation's scale, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal, TypeAlias

from onnx import NodeProto

from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.registry import operator_key

Role: TypeAlias = Literal["weight", "scale", "vector"]

# Inputs that are summed over products with activations. Gather is a product with one-hot rows.
_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Einsum": (0, 1, 2, 3),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2),
}
_SCALES: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1,),
    "GroupNormalization": (1,),
    "InstanceNormalization": (1,),
    "LayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
}


def roles(graph: ChannelGraph) -> dict[str, Role]:
    """Tell what every initialiser is for.

    Initialisers are followed through the nodes that compute constants from constants (Transpose,
    Reshape, Cast, DequantizeLinear, Mul...) to whatever reads the result together with activations.
    """
    sizes = {name: prod(shape) for name, shape in graph.shapes.shapes.items()}
    sizes |= {t.name: prod(t.dims) for t in graph.proto.graph.initializer}
    found: dict[str, Role] = {t.name: "vector" for t in graph.proto.graph.initializer}
    # The initialisers whose elements a constant tensor holds.
    origins: dict[str, tuple[str, ...]] = {name: (name,) for name in found}
    for node in graph.proto.graph.node:
        if all(name in origins for name in node.input if name):
            held = {o for i in _data_inputs(node, sizes) for o in origins[node.input[i]]}
            origins.update(dict.fromkeys(filter(None, node.output), tuple(held)))
            continue
        for i, name in enumerate(node.input):
            for origin in origins.get(name, ()):
                role = _role(operator_key(node.domain, node.op_type), i)
                if role == "weight" or found[origin] == "vector":
                    found[origin] = role
    return found


def _role(operator: str, i: int) -> Role:
    if i in _WEIGHTS.get(operator, ()):
        return "weight"
    return "scale" if i in _SCALES.get(operator, ()) else "vector"


def _data_inputs(node: NodeProto, sizes: Mapping[str, int]) -> list[int]:
    """Return the inputs that a node moves: its largest (the others are scales, shapes, indices)."""
    given = [i for i, name in enumerate(node.input) if name]
    if node.op_type == "Concat":
        return given
    largest = max((sizes.get(node.input[i], 0) for i in given), default=0)
    return [i for i in given if sizes.get(node.input[i], 0) == largest]
