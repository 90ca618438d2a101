"""What a layer of the pruned network should put out.

Usually what it put out in the original. Where its output is added to another branch, the sum is what counts: the layer
that comes last is aimed at the original's sum minus what the other branch gives in the pruned network, so that it makes
up for the other's error as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.helper import get_node_attr_value

from onnxprune._tensors import Weights
from onnxprune.recover.layers import Layer

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A layer's target: ``(original[tensor] - pruned[other] - shift) / scale``.

    Attributes:
        tensor: a tensor of the original.
        other: a tensor of the pruned network, or None.
        scale: per channel of the layer's output, shape (channels,) or ().
        shift: likewise.
        usable: for which channels scale is large enough to divide by.
    """

    tensor: str
    other: str | None
    scale: Vector
    shift: Vector


class Wiring:
    """Who makes and who reads each tensor of a model, and which layers a tensor depends on."""

    def __init__(self, model: ModelProto, layers: Mapping[str, int]) -> None:
        """Index a model; ``layers`` numbers its layers by node name, in topological order."""
        self.weights = Weights(model)
        self.readers: dict[str, list[NodeProto]] = {}
        self._latest: dict[str, int] = {}
        outputs = {o.name for o in model.graph.output}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            latest = max((self._latest.get(n, -1) for n in node.input), default=-1)
            latest = max(latest, layers.get(node.name, -1))
            self._latest.update(dict.fromkeys(node.output, latest))
        self._outputs = outputs

    def only_reader(self, tensor: str) -> NodeProto | None:
        """Return the node that alone reads a tensor, or None."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self._outputs else None

    def latest_layer(self, tensor: str) -> int:
        """Return the number of the last layer that a tensor depends on, -1 for none."""
        return self._latest.get(tensor, -1)


def target_of(layer: Layer, number: int, wiring: Wiring) -> Target:
    """Find a layer's target in the wiring of the pruned network."""
    scale, shift = np.ones(()), np.zeros(())
    tensor, node = layer.y, wiring.only_reader(layer.y)
    while node is not None:
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (np.asarray(wiring.weights[n], dtype=np.float64) for n in node.input[1:5])
            epsilon = next((get_node_attr_value(node, "epsilon") for a in node.attribute if a.name == "epsilon"), 1e-5)
            a = gamma / np.sqrt(variance + epsilon)
            scale, shift = scale * a, shift * a + beta - mean * a
        elif node.op_type == "Add":
            other = next((n for n in node.input if n != tensor), tensor)
            if other in wiring.weights:
                constant = np.asarray(wiring.weights[other], dtype=np.float64)
                if constant.size != max(constant.shape, default=1):
                    break
                shift = shift + constant.ravel()
            elif wiring.latest_layer(other) < number and other != tensor:
                if np.abs(scale).min() > 1e-3 * max(np.abs(scale).max(), 1e-12):
                    return Target(node.output[0], other, scale, shift)
                break
            else:
                break
        elif node.op_type != "Identity":
            break
        tensor, node = node.output[0], wiring.only_reader(node.output[0])
    return Target(layer.y, None, np.ones(()), np.zeros(()))
