"""Roles of initializers: weights, scales of normalizations, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from onnxprune.operators.card import card_of
from onnxprune.trace.graph import ChannelGraph

Role: TypeAlias = Literal["weight", "scale", "vector"]


def roles(graph: ChannelGraph) -> Mapping[str, Role]:
    """Return the roles of initializers by name; those that aren't listed are vectors.

    A weight is what a contraction multiplies and sums over, or the table of a Gather, which is a product with one-hot
    rows. Weights are identified by the channel ids on their axes, which flow through Transpose, Reshape, Cast and
    DequantizeLinear to the node that multiplies them with activations.
    """
    names = list(dict.fromkeys(tensor for tensor, _ in graph.slots))
    number = {name: i for i, name in enumerate(names)}
    owner = np.full(len(graph.unit_of), -1, dtype=np.int64)  # the initializer whose axis an id is on
    for (tensor, _), ids in graph.slots.items():
        owner[ids] = number[tensor]
    found: dict[str, Role] = {}
    for node in graph.proto.graph.node:
        card = card_of(node.domain, node.op_type)
        places: tuple[tuple[int | None, Role], ...] = ((card.table, "weight"), (card.scale, "scale"))
        for i, role in places:
            value = graph.values.get(node.input[i]) if i is not None and i < len(node.input) else None
            if value is not None and value.constant:
                for factor in value.factors:
                    found.update((names[k], role) for k in np.unique(owner[factor.ids]).tolist() if k >= 0)
    return found | dict.fromkeys((tensor for tensor, _ in graph.summed), "weight")
