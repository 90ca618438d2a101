"""Which ranks layers get: sensitivities of the outputs to each layer's rank, and a budget spent by them.

The curves are those of channels (`onnxprune.sensitivity`): a unit is one channel between the two layers. Savings don't
begin with the first one, as two layers cost more than one down to some rank, so that the knapsack chooses among
whole ranks: each layer takes the one with the least error plus cost times a price, and the price is that at which all
limits hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import PlanError
from onnxprune.model.stream import Batches
from onnxprune.model.tensors import Weights
from onnxprune.planning.budget import allowed_counts, check_patterns, matches, multiples
from onnxprune.progress import Progress, silent
from onnxprune.rank.factors import SplitLayer
from onnxprune.recover.layers import LinearLayer
from onnxprune.recover.lstsq import Evidence, Rows, reconstruct
from onnxprune.recover.pairs import of_rank
from onnxprune.recover.regression import LayerIndex, scale_behind
from onnxprune.sensitivity import Curve, Point, measure_layers
from onnxprune.sensitivity.allocation import errors_of
from onnxprune.settings.planning import Constraints
from onnxprune.trace.graph import ChannelGraph

_SHARES = (1.0, 0.7, 0.45, 0.2)  # of the largest rank that pays
_PRICES = (1e-9, 1e9)  # error for all of a limit
_STEPS = 60

Ranks = Mapping[int, Sequence[int]]
"""The ranks that each layer may get, descending, by its number."""


def allowed_ranks(graph: ChannelGraph, layers: Sequence[SplitLayer], constraints: Constraints) -> Ranks:
    """Return the ranks at which layers cost less, in the multiples that channels get; layers without any are left out.

    Args:
        graph: the traced network.
        layers: the layers.
        constraints: limits on what may be changed. `include` and `exclude` are by the names of layers.

    Raises:
        PlanError: a pattern matches no node (OP304).
    """
    names = [node.name for node in graph.proto.graph.node]
    check_patterns("include", constraints.include, names)
    check_patterns("exclude", constraints.exclude, names)
    found = {}
    for number, split in enumerate(layers):
        name = [split.layer.node.name]
        if matches(name, constraints.exclude) or (constraints.include and not matches(name, constraints.include)):
            continue
        counts = allowed_counts(split.full, (1,), constraints, multiples(graph, constraints))
        if ranks := [rank for rank in counts if rank <= split.most]:
            found[number] = ranks
    return found


def measure(
    graph: ChannelGraph,
    layers: Sequence[SplitLayer],
    ranks: Ranks,
    batches: Batches,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Curve]:
    """Return the sensitivity of the outputs to the rank of each layer alone, on samples that nothing is fitted to.

    Args:
        graph: the traced network.
        layers: the layers. A curve's group is the layer's number.
        ranks: the ranks that each may get.
        batches: returns inputs.
        seed: of the choice of positions.
        progress: called with the layers that are done.
    """
    index = LayerIndex(graph.proto, {}, graph.shapes.shapes)
    units = {layers[number].layer.node.name: (number, layers[number].full) for number in ranks}

    def changes(layer: LinearLayer, fitted: Evidence, held: Evidence, start: Rows) -> Iterator[tuple[int, Rows]]:
        number, most = units[layer.node.name]
        full, scale = reconstruct(fitted, held, start), scale_behind(layer, index)
        for rank in _measured(ranks[number]):
            yield most - rank, of_rank(full, rank, fitted, scale)

    how: dict[str, Any] = {"seed": seed, "phase": "measure ranks", "progress": progress}
    return measure_layers(graph, units, changes, batches, makes_up=False, **how)


def by_weights(proto: ModelProto, layers: Sequence[SplitLayer], ranks: Ranks) -> list[Curve]:
    """Return the squared error of each layer's weights at its ranks, relative to their squares, as curves."""
    weights, found = Weights(proto), []
    for number, own in ranks.items():
        split = layers[number]
        squares = np.linalg.svd(split.layer.matrix(weights[split.layer.weight])[0], compute_uv=False) ** 2
        left = 1 - np.cumsum(squares) / max(float(squares.sum()), 1e-30)
        points = tuple(Point(split.full - rank, max(float(left[rank - 1]), 0.0)) for rank in own)
        found.append(Curve(number, tuple(range(split.full)), points))
    return found


def spend(
    layers: Sequence[SplitLayer], ranks: Ranks, curves: Sequence[Curve], limits: Mapping[str, tuple[float, float]]
) -> dict[str, int]:
    """Return the rank of each layer that is to be two, by its node, so that the sum of errors is small.

    Args:
        layers: the layers.
        ranks: the ranks that each may get.
        curves: their sensitivities; a layer without one stays as it is.
        limits: what the network costs, and what it may cost, by quantity: macs, params.

    Raises:
        PlanError: the limits can't be met (OP301).
    """
    options = {curve.group: _Options(layers[curve.group], ranks[curve.group], curve, limits) for curve in curves}

    def at(price: float) -> dict[int, int]:
        return {number: own.best(price) for number, own in options.items()}

    def holds(chosen: Mapping[int, int]) -> bool:
        saved = sum((options[number].savings[choice] for number, choice in chosen.items()), np.zeros(len(limits)))
        return all(now - s <= limit for s, (now, limit) in zip(saved, limits.values(), strict=True))

    low, high = np.log(_PRICES)
    if not holds(at(float(np.exp(high)))):
        cause = f"lower ranks can't bring {' and '.join(limits)} to the limit"
        raise PlanError("OP301", cause, hint="let `axes` name channels, too")
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(at(float(np.exp(middle)))) else (middle, high)
    chosen = at(float(np.exp(high)))
    return {
        layers[number].layer.node.name: options[number].ranks[choice - 1] for number, choice in chosen.items() if choice
    }


class _Options:
    """What a layer may become: as it is, or two at one of some ranks."""

    def __init__(
        self, split: SplitLayer, ranks: Sequence[int], curve: Curve, limits: Mapping[str, tuple[float, float]]
    ) -> None:
        errors = errors_of(curve)
        self.ranks = ranks
        self._errors = np.array([0.0, *(errors[split.full - rank] for rank in ranks)])
        before = {"macs": split.cost.macs, "params": split.outputs * split.features}
        costs = {"macs": split.macs, "params": split.params}
        saved = [[before[q] - costs[q](rank) for q in limits] for rank in ranks]
        self.savings: NDArray[np.float64] = np.array([[0.0] * len(limits), *saved])
        self._relative = (self.savings / [max(limit, 1.0) for _, limit in limits.values()]).sum(axis=1)

    def best(self, price: float) -> int:
        """Return the number of the best option: 0 for as it is."""
        return int(np.argmin(self._errors - price * self._relative))


def _measured(ranks: Sequence[int]) -> list[int]:
    """Return the ranks to measure at, descending."""
    return sorted({min(ranks, key=lambda rank: abs(rank - share * ranks[0])) for share in _SHARES}, reverse=True)
