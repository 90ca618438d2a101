"""Gate gradients: the first-order change of a sample's loss when a unit's activations are scaled.

A gate multiplies all that layers read of a unit; its gradient is the sum over readers and positions of activation times
gradient. Inputs need no labels: these are sampled from the network's own prediction, as the Fisher information demands.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.helper import make_node

from onnxprune.channels.values import Ids
from onnxprune.errors import UsageError
from onnxprune.importance.activations import channel_units
from onnxprune.model.graph import with_inputs, with_nodes
from onnxprune.model.session import run, session
from onnxprune.model.stream import Batches
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.trace.graph import ChannelGraph

Array = NDArray[np.float64]

_NOISE = "noise:"


@dataclass(slots=True)
class _Sums:
    absolute: Array
    squares: Array
    count: int = 0


class GateGradients:
    """Gate gradients of all units of a traced network, computed at first use."""

    def __init__(self, graph: ChannelGraph, batches: Batches, seed: int) -> None:
        """Take a network and inputs for it; nothing is run yet."""
        self._graph, self._batches, self._seed = graph, batches, seed

    def mean_absolute(self, units: Ids) -> Array:
        """Return the mean over samples of the absolute gradient, for each of some units.

        Raises:
            TrainingError: an operator can't be differentiated (OP901, OP902).
            UsageError: there are no inputs (OP604).
        """
        return np.asarray(self._sums.absolute[units] / self._sums.count)

    def mean_square(self, units: Ids) -> Array:
        """Return the mean over samples of the squared gradient; raises as `mean_absolute` does."""
        return np.asarray(self._sums.squares[units] / self._sums.count)

    @cached_property
    def _sums(self) -> _Sums:
        zeros = np.zeros(self._graph.unit_count)
        sums, rng = _Sums(zeros.copy(), zeros.copy()), np.random.default_rng(self._seed)
        runners: dict[tuple[Any, ...], _Runner] = {}
        for batch in self._batches():
            key = tuple((name, array.shape) for name, array in sorted(batch.items()))
            if key not in runners:
                runners[key] = _Runner(self._graph, {name: array.shape for name, array in batch.items()})
            found = runners[key](batch, rng)
            sums.absolute += np.abs(found).sum(axis=0)
            sums.squares += (found**2).sum(axis=0)
            sums.count += len(found)
        if not sums.count:
            raise UsageError("OP604", "there are no inputs to run the model on")
        return sums


class _Runner:
    """A session that computes gate gradients for batches of one shape."""

    def __init__(self, graph: ChannelGraph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from onnxprune.autodiff.backward import gradients, model_of
        from onnxprune.autodiff.forward import forward, scores_of

        layers = [(layer, found) for layer in find_layers(graph.proto) if (found := _channels(graph, layer))]
        self._units = {f"gate:{layer.node.name}": found for layer, found in layers}
        self._count = graph.unit_count
        step = forward(_gated(graph.proto, {layer.node.name for layer, _ in layers}), shapes, [], norms="frozen")
        tape = step.tape
        read = {name: tape[name] for name in self._units if name in tape}
        scores = scores_of(step, graph.proto, graph.proto.graph.output[0].name)
        self._noise = scores.shape
        # The index of the largest of logits plus Gumbel noise is a sample from their Softmax.
        drawn = (scores + tape.input(_NOISE, scores.shape)).op("ArgMax", axis=1, keepdims=1)
        order = tape.constant(np.arange(scores.shape[1]).reshape(1, -1, *[1] * (scores.rank - 2)))
        chosen = drawn.equals(order).cast(scores.dtype)
        loss = -(chosen * scores.op("LogSoftmax", axis=1)).sum(keep=False)
        outputs = {}
        for (name, x), dx in zip(read.items(), gradients(tape, loss, list(read.values())), strict=True):
            axis = self._units[name][0]
            outputs[f"{name}:gradient"] = (x * dx).sum([a for a in range(x.rank) if a not in (0, axis)], keep=False)
        self._session = session(model_of(tape, outputs))

    def __call__(self, batch: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> Array:
        """Return the gradient of every unit's gate for each sample, [samples, units]."""
        feeds = {**batch, _NOISE: rng.gumbel(size=self._noise).astype(np.float32)}
        found = run(self._session, {i.name: feeds[i.name] for i in self._session.get_inputs()})
        samples = max(len(array) for array in found.values())
        total = np.zeros((samples, self._count))
        for name, gate in found.items():
            np.add.at(total.T, self._units[name.removesuffix(":gradient")][1], gate.T)
        return total


def _gated(proto: ModelProto, names: Container[str]) -> ModelProto:
    """Return a model in which each of some nodes reads its input through an Identity named ``gate:<node>``."""
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        if node.name in names:
            gate = f"gate:{node.name}"
            nodes.append(make_node("Identity", [node.input[0]], [gate], name=gate))
            node = with_inputs(node, [gate, *node.input[1:]])
            node.name += ":gated"
        nodes.append(node)
    return with_nodes(proto, nodes)


def _channels(graph: ChannelGraph, layer: LinearLayer) -> tuple[int, Ids] | None:
    """Return the axis on which a layer reads channels, and the unit of each; None if they can't be gated."""
    units = channel_units(graph, layer)
    axis = len(graph.values[layer.x].shape) - 1 if layer.channels_last else 1
    return None if units is None or axis == 0 else (axis, units)
