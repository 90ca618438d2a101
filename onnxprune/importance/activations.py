"""Activation statistics: what layers read of each channel when the network runs on inputs.

One run of the network covers many layers. Only running sums are kept, over sampled output positions, of what a layer
multiplies by its weights. If the sums of all layers need too much memory, the network is run again for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxprune.channels.values import Ids
from onnxprune.errors import UsageError
from onnxprune.model.stream import Batches, Stream
from onnxprune.model.tensors import Weights
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.recover.lstsq import WIDE, Moments, Rows
from onnxprune.recover.regression import InterceptPlace, LayerIndex, intercept_place, parameters
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

# Bytes of sums held at a time, and output positions sampled from 32 samples, at least some from each batch.
_BUDGET = 2**30
_POSITIONS, _PER, _FEWEST = 2048, 32, 128
# Of features below this, the sums of a batch are in single precision, which takes half the time.
_SINGLE = 1e9
# Of refits, which hold no data back to choose it by; relative to the mean square of a feature.
_RIDGE = 1e-3


@dataclass(slots=True)
class ActivationSums:
    """Running sums over sampled positions of a layer's features, per conv group; a last feature is all ones.

    Attributes:
        gram: of x x^T, shape (groups, features + 1, features + 1); the last feature is zero if there is no intercept.
        size: of the absolute value of x, shape (groups, features).
        active: of x != 0, likewise.
        count: number of positions.
    """

    gram: Rows = field(default_factory=lambda: np.zeros(()))
    size: Rows = field(default_factory=lambda: np.zeros(()))
    active: Rows = field(default_factory=lambda: np.zeros(()))
    count: int = 0

    def add(self, features: Rows, *, intercept: bool) -> None:
        """Add positions, shape (n, groups, features)."""
        last = np.full((*features.shape[:2], 1), float(intercept))
        x = np.concatenate([features, last], axis=2).transpose(1, 0, 2)
        if np.abs(x).max(initial=0.0) < _SINGLE:
            x = x.astype(np.float32)
        self.gram = self.gram + x.transpose(0, 2, 1) @ x
        self.size = self.size + np.abs(features).sum(axis=0)
        self.active = self.active + (features != 0).sum(axis=0)
        self.count += len(features)


@dataclass(frozen=True, slots=True, eq=False)
class LayerActivations:
    """A layer that reads units of a group, with statistics of what it reads.

    Attributes:
        layer: the layer.
        units: the unit of every feature, shape (groups, features).
        parameters: its weights and intercepts, shape (groups, outputs, features + 1).
        place: the initializer that can hold its intercepts, or None.
        sums: over its features.
    """

    layer: LinearLayer
    units: Ids
    parameters: Rows
    place: InterceptPlace | None
    sums: ActivationSums

    @property
    def covariance(self) -> Rows:
        """Covariance of the features, shape (groups, features, features); second moments if there is no intercept."""
        gram = self.sums.gram / max(self.sums.count, 1)
        mean = gram[:, :-1, -1]
        return np.asarray(gram[:, :-1, :-1] - mean[:, :, None] * mean[:, None, :])

    @property
    def variance(self) -> float:
        """Variance of the layer's output, summed over channels."""
        weight = self.parameters[..., :-1]
        return max(float(np.einsum("gof,gof->", weight @ self.covariance, weight)), 1e-30)

    def per_unit(self, values: Rows, units: Ids) -> Rows:
        """Return the average over each unit's features of values of shape (groups, features), shape (units,)."""
        order = np.argsort(units)
        at = order[np.searchsorted(units, self.units, sorter=order).clip(max=len(units) - 1)]
        mine = units[at] == self.units
        total = np.bincount(at[mine], weights=values[mine], minlength=len(units))
        return np.asarray(total / np.maximum(np.bincount(at[mine], minlength=len(units)), 1))

    def without(self, units: Ids) -> Rows:
        """Return the parameters that reproduce the layer's output best without some units, by least squares.

        The shape stays; weights of the removed units are zero.
        """
        gone = np.isin(self.units, units)
        new = self.parameters.copy()
        for g in np.flatnonzero(gone.any(axis=1)).tolist():
            kept = np.append(~gone[g], True)
            gram, old = self.sums.gram[g][kept], self.parameters[g]
            moments = Moments(gram[None, :, kept], (old @ gram.T)[None], np.zeros(()), self.sums.count)
            new[g] = 0
            new[g][:, kept] = moments.solve(old[None, :, kept], _RIDGE)[0]
        return new


Activations = tuple[LayerActivations, ...]


def gather(
    graph: ChannelGraph, groups: Iterable[Group], batches: Batches, *, seed: int = 0, budget: int = _BUDGET
) -> Iterator[tuple[Group, Activations]]:
    """Run a network on inputs and yield each group with its activation statistics, empty if no layer reads it.

    Args:
        graph: the traced network.
        groups: its groups, in the order to yield them.
        batches: returns the inputs.
        seed: of the random choice of positions.
        budget: bytes of sums held at a time; one group may need more.

    Raises:
        ModelError: ONNX Runtime can't run the network on the inputs.
        UsageError: there are no inputs (OP604).
    """
    layers = find_layers(graph.proto)
    index = LayerIndex(graph.proto, {}, graph.shapes.shapes)
    runs = [layer.y not in graph.unmade for layer in layers]
    units = {i: u for i, layer in enumerate(layers) if runs[i] and (u := feature_units(graph, layer)) is not None}
    readers: dict[int, list[int]] = {g.index: [] for g in graph.groups}
    owner = np.full(graph.unit_count, -1, dtype=np.int64)
    for group in graph.groups:
        owner[group.units] = group.index
    for i, found in units.items():
        for group_index in np.unique(owner[found]).tolist():
            if group_index >= 0:
                readers[group_index].append(i)
    for chunk in _chunks(list(groups), readers, layers, index.weights, budget):
        wanted = sorted({i for group in chunk for i in readers[group.index]})
        found_sums = _run(graph, {i: layers[i] for i in wanted}, index, batches, seed)
        statistics = {
            i: LayerActivations(
                layers[i],
                units[i],
                parameters(layers[i], index.weights),
                intercept_place(layers[i], index),
                found_sums[i],
            )
            for i in wanted
        }
        del found_sums
        for group in chunk:
            yield group, tuple(statistics[i] for i in readers[group.index])


def channel_units(graph: ChannelGraph, layer: LinearLayer) -> Ids | None:
    """Return the unit of each channel that a layer reads, shape (channels,).

    None if all are pinned, or if the layer is depthwise: its outputs are removed together with what it reads.
    """
    value = graph.values.get(layer.x)
    factor = value.on(len(value.shape) - 1 if layer.channels_last else 1) if value is not None else None
    if factor is None or len(factor.axes) > 1 or layer.groups == len(factor.ids) > 1:
        return None
    units = graph.unit_of[factor.ids]
    return None if graph.pinned[units].all() else units


def feature_units(graph: ChannelGraph, layer: LinearLayer) -> Ids | None:
    """Return the unit of each of a layer's features, shape (groups, features).

    None as for `channel_units`, and if there are too many features for the moments of their pairs.
    """
    units, weight = channel_units(graph, layer), graph.shapes.shapes[layer.weight]
    if units is None or layer.features(weight) > WIDE:
        return None
    taps = 1 if layer.channels_last else prod(weight[2:])
    return np.repeat(units.reshape(layer.groups, -1), taps, axis=1)


def _chunks(
    groups: Sequence[Group],
    readers: Mapping[int, Sequence[int]],
    layers: Sequence[LinearLayer],
    weights: Weights,
    budget: int,
) -> Iterator[list[Group]]:
    """Yield runs of groups whose layers' sums fit into memory together."""
    chunk: list[Group] = []
    held: set[int] = set()
    for group in groups:
        more = held | set(readers[group.index])
        if chunk and sum(_bytes(layers[i], weights) for i in more) > budget:
            yield chunk
            chunk, more = [], set(readers[group.index])
        chunk.append(group)
        held = more
    if chunk:
        yield chunk


def _bytes(layer: LinearLayer, weights: Weights) -> int:
    return 8 * layer.groups * layer.features(weights.shape(layer.weight)) ** 2


def _run(
    graph: ChannelGraph, layers: Mapping[int, LinearLayer], index: LayerIndex, batches: Batches, seed: int
) -> dict[int, ActivationSums]:
    """Run the network and return the sums of each layer."""
    stream = Stream(graph.proto, batches, unmade=graph.unmade)
    sums = {}
    for number, layer in layers.items():
        stream.advance(index.positions[layer.node.name])
        rng, own = np.random.default_rng((seed, number)), ActivationSums()
        intercept = intercept_place(layer, index) is not None
        for batch in stream.tensors([layer.x, layer.y]):
            some = min(_POSITIONS, max(_POSITIONS * len(batch[layer.x]) // _PER, _FEWEST))
            features, _ = layer.sample(batch[layer.x], [batch[layer.y]], some, rng)
            own.add(features, intercept=intercept)
        if not own.count:
            raise UsageError("OP604", "there are no inputs to run the model on")
        sums[number] = own
    return sums
