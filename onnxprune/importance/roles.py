"""What initializers are to the nodes that read them: weights, a normalization's scale, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from onnxprune.operators.registry import operator_key
from onnxprune.trace.graph import ChannelGraph

Role: TypeAlias = Literal["weight", "scale", "vector"]

# Inputs that contractions don't tell: scales of what was normalized, and tables of which rows are picked.
_INPUTS: Mapping[str, tuple[int, Role]] = {
    "BatchNormalization": (1, "scale"),
    "Gather": (0, "weight"),
    "GroupNormalization": (1, "scale"),
    "InstanceNormalization": (1, "scale"),
    "LayerNormalization": (1, "scale"),
    "RMSNormalization": (1, "scale"),
    "SimplifiedLayerNormalization": (1, "scale"),
    "com.microsoft:GroupNorm": (1, "scale"),
    "com.microsoft:SkipLayerNormalization": (2, "scale"),
    "com.microsoft:SkipSimplifiedLayerNormalization": (2, "scale"),
}


def roles(graph: ChannelGraph) -> Mapping[str, Role]:
    """Tell what initializers are for, by their names; those that aren't listed are vectors.

    A weight is what a contraction sums products with (or the table of a Gather: a product with one-hot rows). Weights
    are known by the channel ids on their axes, which flow through Transpose, Reshape, Cast, DequantizeLinear and the
    like to whatever reads the result together with activations.
    """
    names = list(dict.fromkeys(tensor for tensor, _ in graph.slots))
    number = {name: i for i, name in enumerate(names)}
    owner = np.full(len(graph.unit_of), -1, dtype=np.int64)  # the initializer on whose axis an id stands
    for (tensor, _), ids in graph.slots.items():
        owner[ids] = number[tensor]
    found: dict[str, Role] = {}
    for node in graph.proto.graph.node:
        i, role = _INPUTS.get(operator_key(node.domain, node.op_type), (len(node.input), None))
        value = graph.values.get(node.input[i]) if i < len(node.input) else None
        if role is not None and value is not None and value.constant:
            for factor in value.factors:
                found.update((names[k], role) for k in np.unique(owner[factor.ids]).tolist() if k >= 0)
    return found | dict.fromkeys((tensor for tensor, _ in graph.summed), "weight")
