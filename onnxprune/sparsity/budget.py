"""How many weights each layer loses: sensitivities of the outputs to each layer's zeros, and a budget spent by them.

The curves and their slopes are those of channels (`onnxprune.sensitivity`). A unit is a hundredth of a layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model.stream import Batches
from onnxprune.progress import Progress, silent
from onnxprune.recover.layers import LinearLayer
from onnxprune.recover.lstsq import Evidence, Rows
from onnxprune.sensitivity import Curve, measure_layers, slopes
from onnxprune.sparsity.solve import Way, solve
from onnxprune.trace.graph import ChannelGraph

_PARTS = 100
_SHARES = (0.5, 0.7, 0.85, 0.95)
_MOST = 0.98  # of a layer's weights, unless that leaves more than is asked for


def measure(
    graph: ChannelGraph,
    layers: Sequence[LinearLayer],
    batches: Batches,
    way: Way,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Curve]:
    """Return the sensitivity of the outputs to zeros in each layer alone, on samples that nothing is fitted to.

    Args:
        graph: the traced network.
        layers: the layers, in topological order. A curve's group is the layer's number.
        batches: returns inputs.
        way: how layers are made sparse.
        seed: of the choice of positions.
        progress: called with the layers that are done.
    """

    def changes(layer: LinearLayer, fitted: Evidence, held: Evidence, start: Rows) -> Iterator[tuple[int, Rows]]:
        for share in _SHARES:
            yield round(share * _PARTS), solve(way, share, layer, fitted, None, start)

    units = {layer.node.name: (i, _PARTS) for i, layer in enumerate(layers)}
    return measure_layers(graph, units, changes, batches, seed=seed, progress=progress)


def spend(curves: Sequence[Curve], sizes: Sequence[int], share: float) -> NDArray[np.float64]:
    """Return the share of zeros of each layer that adds the least error.

    Args:
        curves: sensitivities of the layers; one without a curve stays dense.
        sizes: the number of weights of each.
        share: the share of zeros of all that have a curve.
    """
    numbers = [curve.group for curve in curves]
    own = np.array([sizes[n] for n in numbers], dtype=float)
    added = np.array([slopes(curve) for curve in curves]) / own[:, None]  # per weight, in order of removal
    parts = int(max(_MOST, (1 + share) / 2) * _PARTS)
    ascending = np.argsort(added[:, :parts].ravel(), kind="stable")
    saved = np.cumsum(np.repeat(own / _PARTS, parts)[ascending])
    taken = min(int(np.searchsorted(saved, share * own.sum())) + 1, len(ascending))
    found = np.zeros(len(sizes))
    found[numbers] = np.bincount(ascending[:taken] // parts, minlength=len(numbers)) / _PARTS
    last = numbers[ascending[taken - 1] // parts]  # what is too much is taken back from the last
    found[last] -= max(saved[taken - 1] - share * own.sum(), 0.0) / sizes[last]
    return found


def by_magnitude(weights: Iterable[NDArray[Any]], share: float) -> NDArray[np.float64]:
    """Return the share of zeros of each layer by its weights alone.

    A weight's score is its share in the squares of all weights of its layer that are no smaller (LAMP: J. Lee et al.,
    "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021); the lowest scores of all layers go.
    """
    scores = []
    for weight in weights:
        squares = np.sort(weight.ravel().astype(np.float64) ** 2)
        left = np.cumsum(squares[::-1])[::-1]
        scores.append(np.divide(squares, left, out=np.zeros_like(squares), where=left > 0).astype(np.float32))
    everything = np.concatenate(scores)
    limit = np.partition(everything, k := min(round(share * len(everything)), len(everything) - 1))[k]
    return np.array([np.mean(own < limit) for own in scores])
