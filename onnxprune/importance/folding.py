"""BatchNormalization folded into the weights before it: its factors, weight by weight.

Channel c of what a contraction computes is multiplied by gamma[c] / sqrt(var[c] + epsilon), which
is the same as scaling the weights that make it. Only their product means anything: scaling the
weights up and gamma down changes no output, and changes no score either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.model import weights
from onnxprune.trace.graph import ChannelGraph

Factors: TypeAlias = Mapping[str, NDArray[np.float64]]


def folded_scales(graph: ChannelGraph) -> Factors:
    """Return what following BatchNormalizations multiply weights by, in shapes that broadcast to them.

    A weight is left alone where anything but one BatchNormalization depends on the products with it.

    Raises:
        ModelError: a scale isn't finite, or a variance isn't positive (OP126).
    """
    found = (_fold(graph, node) for node in graph.proto.graph.node)
    return dict(entry for entry in found if entry is not None)


def _fold(graph: ChannelGraph, norm: NodeProto) -> tuple[str, NDArray[np.float64]] | None:
    if norm.op_type != "BatchNormalization" or _attribute(norm, "training_mode", 0):
        return None
    arrays = weights(graph.proto)
    product = _sole_producer(graph, norm.input[0])
    if product is None or norm.input[1] not in arrays or norm.input[4] not in arrays:
        return None
    ...
