"""Sparsity penalties, which drive unimportant channels to zero before a network is pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from onnx import ModelProto

from onnxprune.autodiff.forward import Forward
from onnxprune.channels.values import Ids
from onnxprune.errors import TrainingError
from onnxprune.model.tape import Tensor
from onnxprune.trace import trace
from onnxprune.trace.graph import ChannelGraph

Penalty: TypeAlias = "Callable[[Forward, ModelProto], Tensor]"

_CONTRAST = 4.0
_TINY = 1e-12


def slimming(forward: Forward, proto: ModelProto) -> Tensor:
    """Return the sum of absolute batch normalization scales (Liu et al., "network slimming", ICCV 2017).

    Raises:
        TrainingError: the model has no trained batch normalization (OP904).
    """
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    scales = [forward.weights[node.input[1]] for node in norms if node.input[1] in forward.weights]
    if not scales:
        cause = "slimming needs batch normalizations, and the model has none (exporters fold them into convolutions)"
        raise TrainingError("OP904", cause, hint="use `lasso`, which applies to all weights of a channel")
    sums = [scale.op("Abs").sum(keep=False) for scale in scales]
    return sums[0] if len(sums) == 1 else forward.tape.emit("Sum", *sums)


def lasso(forward: Forward, proto: ModelProto) -> Tensor:
    """Return half the weighted sum of squares of all units' weights, with larger weights for less important units.

    A unit's weight is 2^(a (max - norm) / (max - min)), from the norm over all its parameters and the extremes in its
    group, with a = 4: the least important units shrink sixteen times as fast as the most important ones (Fang et al.,
    "DepGraph: toward any structural pruning", CVPR 2023).

    Raises:
        TrainingError: no trained channel can be removed (OP904).
    """
    graph, tape = trace(proto), forward.tape
    squares, units = list[Tensor](), list[Ids]()
    for (name, axis), ids in graph.slots.items():
        if name in forward.weights:
            squares.append(_squares(forward.weights[name], axis, graph.per_group.get((name, axis))))
            units.append(graph.unit_of[ids])
    unit = np.concatenate(units) if units else np.empty(0, np.int64)
    found = np.flatnonzero(~graph.pinned[unit])  # positions of units that can be removed
    if not len(found):
        raise TrainingError("OP904", "lasso needs trained channels that can be removed, and the model has none")
    removable, rows = np.unique(unit[found], return_inverse=True)
    everywhere = tape.emit("Concat", *squares, tape.constant(np.zeros(1, np.float32)), axis=0)
    apart = everywhere.op("Gather", tape.constant(_table(rows, found, otherwise=everywhere.size - 1)))
    energy = apart.sum([1], keep=False)
    return (tape.stop_gradient(_rank(energy, _groups_of(graph, removable))) * energy).sum(keep=False) * 0.5


def _rank(energy: Tensor, group: Ids) -> Tensor:
    """Return the weights of units, from their sums of squares and groups."""
    tape, norm = energy.tape, energy.op("Sqrt")
    members = _table(group, np.arange(len(group)), otherwise=-1)
    members = np.where(members < 0, members[:, :1], members)
    shared = norm.op("Gather", tape.constant(members))
    largest, smallest = (
        shared.reduce(f"Reduce{which}", [1], keep=False).op("Gather", tape.constant(group)) for which in ("Max", "Min")
    )
    return norm.like(2.0) ** ((largest - norm) / (largest - smallest + _TINY) * _CONTRAST)


def _groups_of(graph: ChannelGraph, units: Ids) -> Ids:
    """Return the groups of some removable units, numbered consecutively."""
    group = np.zeros(graph.unit_count, np.int64)
    for found in graph.groups:
        group[found.units] = found.index
    return np.unique(group[units], return_inverse=True)[1]


def _table(rows: Ids, entries: Ids, *, otherwise: int) -> Ids:
    """Return a table with entries in their rows, padded with a value."""
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max()), otherwise)
    table[rows[order], columns] = entries[order]
    return table


def _squares(weight: Tensor, axis: int, groups: int | None) -> Tensor:
    """Return the sums of squares along an axis, [positions]; of each group of a grouped convolution, concatenated."""
    squares = weight * weight
    if groups is None:
        return squares.sum([a for a in range(weight.rank) if a != axis], keep=False)
    apart = squares.reshape((groups, -1, *weight.shape[1:]))
    return apart.sum([a for a in range(apart.rank) if a not in (0, 2)], keep=False).reshape((-1,))


PENALTIES: Mapping[str, Penalty] = {"lasso": lasso, "slimming": slimming}
"""Penalties, by the names of the settings with their weights."""
