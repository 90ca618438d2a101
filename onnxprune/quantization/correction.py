"""Weights and biases of an INT8 model that make up for rounding, layer by layer.

Rounding errors of weights don't average out over a layer's inputs, which are mostly positive: each channel's mean
shifts, and shifts add up through the network. M. Nagel et al., "Data-free quantization through weight equalization and
bias correction", ICCV 2019, section 4.2, correct biases for that; here means are measured on samples.

Weights can make up for more, as in a repair: by ridge regression on what the INT8 model gives a layer, toward what the
layer gives in the original. They are then rounded column by column, each making up for the rounding of those before it
(`onnxprune.recover.columns`). How near they stay to the original's weights is decided by samples held back, after
rounding, and so is whether a layer keeps the weights it has. Steps of whole numbers stay: kernels take the step of a
bias for the product of those of weight and input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.model.graph import GraphIndex, attribute
from onnxprune.model.stream import Batches, Inputs, Stream
from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.recover.columns import column_by_column, factor, quadratic
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.recover.lstsq import Evidence, Moments, Rows, evidence, shift
from onnxprune.recover.regression import parameters

_SAMPLES = 128  # that are run, at least
_POSITIONS = 64  # of a layer's output that are looked at, for each sample
_HELD = 4  # samples, of which one is held back
_RIDGES = (1e-2, 1e-1, 1.0)
_WIDEST = 2304  # features of a group, above which solving takes too long


def correct(model: ModelProto, prepared: ModelProto, batches: Batches) -> int:
    """Change the weights and biases of a model of QuantizeLinear and DequantizeLinear nodes in place.

    Args:
        model: what `static` returns, in topological order.
        prepared: what it was made of. Nodes have the same names there.
        batches: returns inputs; the same ones at each call.

    Returns:
        The number of layers that were changed: those with a weight of their own, and a bias of their own if any.

    Raises:
        ModelError: ONNX Runtime can't run a part of a model (OP122).
    """
    layers, weights = {layer.node.name: layer for layer in find_layers(prepared)}, Weights(prepared)
    index, source, stored = GraphIndex(model.graph), GraphIndex(prepared.graph), Weights(model)
    running = ModelProto()  # with real numbers: a node that makes them runs before the layer, and only once
    running.CopyFrom(model)
    now, then, count = Stream(running, lambda: _some(batches)), Stream(prepared, lambda: _some(batches)), 0
    for position, node in enumerate(model.graph.node):
        layer = layers.get(node.name)
        if layer is None:
            continue
        weight, bias = (_whole(node, place, index, stored) for place in (1, 2))
        if weight is None or (bias is None) != (layer.bias is None):
            continue
        own = running.graph.node[position]
        for place, whole in ((1, weight), (2, bias)):
            if whole is not None:
                own.input[place] = whole.real.name
                running.graph.initializer.append(whole.real)
                whole.real = running.graph.initializer[-1]
        now.advance(position)
        then.advance(source.positions[node.name])
        start = parameters(layer, weights)
        fitted, held = _evidence(layer, own.input[0], now, then, start.shape[2] - 1, intercept=bias is not None)
        count += _solve(layer, start, fitted, held, weight, bias)
    return count


@dataclass(slots=True)
class _Whole:
    """Whole numbers of a tensor.

    Attributes:
        tensor: the tensor.
        step: what a step of each is worth; broadcasts to their shape.
        real: the same in real numbers, in a copy of the model.
    """

    tensor: TensorProto
    step: Rows
    real: TensorProto

    @property
    def numbers(self) -> Rows:
        """The whole numbers."""
        return numpy_helper.to_array(self.tensor).astype(np.float64)

    def put(self, values: Rows) -> None:
        """Store the whole numbers that are nearest to some real ones."""
        kind = np.iinfo(numpy_helper.to_array(self.tensor).dtype)
        numbers = np.clip(np.round(values.reshape(tuple(self.tensor.dims)) / self.step), kind.min, kind.max)
        set_tensor(self.tensor, numbers.astype(kind.dtype))
        set_tensor(self.real, (numbers * self.step).astype(np.float32))


def _whole(node: NodeProto, place: int, index: GraphIndex, stored: Weights) -> _Whole | None:
    """Return the whole numbers of an input; None if it has none of its own."""
    maker = index.makers.get(node.input[place]) if place < len(node.input) else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    name, scale = maker.input[:2]
    if name not in stored or scale not in stored or index.uses[name] > 1 or stored.dtype(name).kind != "i":
        return None
    step, numbers = stored[scale].astype(np.float64), stored[name]
    if step.size > 1:
        step = step.reshape([-1 if axis == attribute(maker, "axis", 1) else 1 for axis in range(numbers.ndim)])
    real = numpy_helper.from_array((numbers * step).astype(np.float32), f"{name}/corrected")
    return _Whole(stored.tensor(name), step, real)


def _solve(
    layer: LinearLayer, start: Rows, fitted: Evidence, held: Evidence, weight: _Whole, bias: _Whole | None
) -> bool:
    """Give a layer the weights that do best on samples held back; not if what they get or should give isn't finite."""
    numbers = weight.numbers
    step, reach = layer.matrix(np.broadcast_to(weight.step, numbers.shape)), np.abs(numbers).max()  # 7 bits stay 7

    def rounded(weights: Rows, column: int) -> Rows:
        own = step[..., column]
        return np.asarray(np.clip(np.round(weights[..., column] / own), -reach, reach) * own)

    def with_intercepts(matrix: Rows) -> Rows:
        whole = np.concatenate([matrix, start[..., -1:]], axis=2)
        return whole if bias is None else shift(fitted, fitted, whole)

    candidates = [with_intercepts(layer.matrix(numbers * weight.step))]
    if not np.isfinite([each.error(candidates[0]) for each in (fitted, held) if each.count]).all():
        return False
    if isinstance(fitted, Moments) and held.count and start.shape[2] <= _WIDEST:
        for ridge in _RIDGES:
            goal, curvature = quadratic(fitted, start, ridge)
            candidates.append(with_intercepts(column_by_column(goal, factor(curvature), rounded)))
    best = min(candidates, key=held.error) if held.count else candidates[0]
    weight.put(layer.weight_of(best[..., :-1], numbers))
    if bias is not None:
        bias.put(best[..., -1])
    return True


def _evidence(
    layer: LinearLayer, x: str, now: Stream, then: Stream, features: int, *, intercept: bool
) -> tuple[Evidence, Evidence]:
    """Return what a layer gets in the INT8 model and gives in the original: to fit to, and held back."""
    found, rng, seen = (evidence(features), evidence(features)), np.random.default_rng(0), 0
    for have, goal in zip(now.tensors([x]), then.tensors([layer.y]), strict=True):
        inputs, outputs = have[x], goal[layer.y]
        back = np.arange(seen, seen + len(inputs)) % _HELD == _HELD - 1
        seen += len(inputs)
        for own, part in zip(found, (~back, back), strict=True):
            if part.any():
                rows, targets = layer.sample(inputs[part], [outputs[part]], _POSITIONS * int(part.sum()), rng)
                own.add(rows, targets[0], intercept=intercept)
    return found


def _some(batches: Batches) -> Iterable[Inputs]:
    count = 0
    for batch in batches():
        if count >= _SAMPLES:
            return
        count += max((len(array) for array in batch.values() if array.ndim), default=1)
        yield batch
