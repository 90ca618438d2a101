"""Criteria of weights (l1, l2, bn-scale, lamp, fpgm, random), activations and gradients. Biases don't count.

Activation criteria score what the layers that read a unit multiply by their weights: behind the activation function,
averaged over positions and taps. With several readers, the values of each are relative to their mean over the group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids
from onnxprune.importance.activations import LayerActivations
from onnxprune.importance.base import GroupView, Scores, SlotRows
from onnxprune.importance.registry import criterion
from onnxprune.importance.roles import Role
from onnxprune.importance.weight_view import Power
from onnxprune.recover.lstsq import Rows

_WEIGHTS = "weights of a convolution or matrix product"
_READER = "a convolution or matrix product that reads it with weights of its own"
_LAYER = "a layer with weights that reads it"


@criterion("l1", reads=_WEIGHTS)
def l1(view: GroupView) -> Scores:
    """Score a unit by the sum of the absolute values of its weights, slots balanced (see `balanced`)."""
    return balanced(view, "weight", 1)


@criterion("l2", reads=_WEIGHTS)
def l2(view: GroupView) -> Scores:
    """Score a unit by the root of the sum of the squares of its weights, slots balanced."""
    return np.sqrt(balanced(view, "weight", 2))


@criterion("bn-scale", reads="a BatchNormalization (exporters fold them into the convolutions)")
def bn_scale(view: GroupView) -> Scores:
    """Score a unit by the absolute value of its normalizations' scales, slots balanced.

    Network slimming (Liu et al., ICCV 2017). Groups without a normalization aren't scored.
    """
    return balanced(view, "scale", 1)


@criterion("lamp", reads=_WEIGHTS, comparable=True)
def lamp(view: GroupView) -> Scores:
    """Score a unit by its share in the sum of squares of all units of the group that are no smaller.

    Layer-adaptive magnitude (Lee et al., ICLR 2021) with units instead of single weights. The largest unit of every
    group scores 1, so that no group is emptied before the others. Equal units score the same.
    """
    squares = balanced(view, "weight", 2)
    ascending = np.sort(squares)
    no_smaller = np.cumsum(ascending[::-1])[::-1][np.searchsorted(ascending, squares)]
    return np.divide(squares, no_smaller, out=np.zeros_like(squares), where=no_smaller != 0)


@criterion("random")
def random(view: GroupView) -> Scores:
    """Score units at random, uniform in [0, 1), the same for the same seed and group."""
    return view.rng.random(len(view.group.units))


# Distances held at a time; with more units, the rows are read more than once.
_DISTANCES = 1 << 24


@criterion("fpgm", reads=_WEIGHTS)
def fpgm(view: GroupView) -> Scores:
    """Score a unit by the sum of its distances to all other units of the group.

    Filter pruning via geometric median (He et al., CVPR 2019). A unit is the vector of all its weights, with slots
    balanced: squared distances are relative to the mean square of a slot's rows, and averaged over slots by their
    shares.
    """
    slots = list(view.of("weight"))
    if not slots:
        return view.unscored
    units = len(view.group.units)
    step = max(1, _DISTANCES // units)
    blocks = [slice(start, start + step) for start in range(0, units, step)]
    return np.concatenate([_distances(slots, block) for block in blocks])


def _distances(slots: list[SlotRows], block: slice) -> Scores:
    """Return the sum of distances to all units, for the units in a block."""
    shared = zip(shares(slots).tolist(), slots, strict=True)
    squares = sum(share * _squared_distances(slot, block) for share, slot in shared)
    return np.asarray(np.sqrt(squares).sum(axis=1, dtype=np.float64))


def _squared_distances(slot: SlotRows, block: slice) -> NDArray[np.floating[Any]]:
    """Return balanced squared distances of a block's units to all units, shape (block, units)."""
    rows = slot.rows
    norms = slot.power_sums(2)
    mean = float(norms.mean()) or 1.0
    norms = (norms / mean).astype(rows.dtype)
    rows = np.divide(rows, mean**0.5, out=rows if rows.flags.writeable else None)  # large arrays are copies already
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: all pairs at the cost of one matrix product.
    squares = rows[block] @ rows.T
    squares *= -2
    squares += norms[block, None]
    squares += norms
    np.fill_diagonal(squares[:, block], 0)  # where rounding matters most
    return np.asarray(np.maximum(squares, 0, out=squares))


_READING_SHARE = 0.75  # of weights that read a unit, against those that produce it


def balanced(view: GroupView, role: Role, power: Power) -> Scores:
    """Return sums of absolute values to a power over all rows of a role, shape (units,).

    Each slot's sums are divided by their mean over the units, and averaged by the slot's share; a slot of zeros adds
    zero. NaN without rows of the role.
    """
    rows = list(view.of(role))
    if not rows:
        return view.unscored
    sums = np.stack([r.power_sums(power) for r in rows])
    means = sums.mean(axis=1, keepdims=True)
    return np.asarray(shares(rows) @ np.divide(sums, means, out=np.zeros_like(sums), where=means != 0))


def shares(rows: Sequence[SlotRows]) -> Scores:
    """Return the share of every slot in the scores, shape (slots,), adding up to one."""
    reads = np.array([r.reads for r in rows])
    side = np.where(reads, _READING_SHARE, 1 - _READING_SHARE) / np.where(reads, reads.sum(), (~reads).sum())
    return np.asarray(side / side.sum())


@criterion("mean-abs", reads=_READER, data=True)
def mean_abs(view: GroupView) -> Scores:
    """Score a unit by the mean of its absolute activations.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", ICLR 2017, among others.
    """
    return _average(view, lambda layer: layer.sums.size / layer.sums.count)


@criterion("apoz", reads=_READER, data=True)
def apoz(view: GroupView) -> Scores:
    """Score a unit by the share of its activations that aren't zero: one less the average percentage of zeros.

    Hu et al., "Network trimming", 2016. Only useful with activation functions that return zeros, such as Relu.
    """
    return _average(view, lambda layer: layer.sums.active / layer.sums.count)


@criterion("variance", reads=_READER, data=True)
def variance(view: GroupView) -> Scores:
    """Score a unit by the variance of its activations: a constant unit can be replaced by an intercept."""
    return _average(view, lambda layer: np.einsum("gff->gf", layer.covariance))


def _average(view: GroupView, of: Callable[[LayerActivations], Rows]) -> Scores:
    if not view.activations:
        return view.unscored
    total = np.zeros(len(view.group.units))
    for layer in view.activations:
        values = layer.per_unit(of(layer), view.group.units)
        total += values / max(float(values.mean()), 1e-30)
    return total / len(view.activations)


@criterion("taylor", reads=_LAYER, data=True)
def taylor(view: GroupView) -> Scores:
    """Score a unit by the mean over samples of |dL/dg|, the first-order change of the loss when its gate g closes.

    Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019.
    """
    return view.unscored if view.gates is None else view.gates.mean_absolute(view.group.units)


@criterion("fisher", reads=_LAYER, data=True)
def fisher(view: GroupView) -> Scores:
    """Score a unit by the Fisher information E[(dL/dg)^2] about its gate g, twice the expected rise of the loss.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018); Liu et al., "Group Fisher
    pruning", ICML 2021, for units of several layers.
    """
    return view.unscored if view.gates is None else view.gates.mean_square(view.group.units)


# Rounds to empty a group in: one channel per round takes longer, without measurably better results.
_ROUNDS = 48
_RIDGE = 1e-3


@criterion("obs", reads=_READER, comparable=True, data=True)
def obs(view: GroupView) -> Scores:
    """Score a unit by the output error that its removal adds after all cheaper ones, with its readers refitted.

    Removing the inputs B of a layer with weights W and input covariance C, and refitting the rest by least squares,
    adds a mean squared output error of tr(W_B (C^-1_BB)^-1 W_B^T) (Hassibi and Stork, "Second order derivatives for
    network pruning: optimal brain surgeon", NIPS 1992, with a layer's quadratic error instead of the loss, and all
    inputs of a channel instead of one weight). Errors are relative to the variance of a reader's output, and add up
    over readers and products of queries and keys. Weights and inverse are updated after each round of removals, so that
    of two channels that can replace each other only one is cheap.
    """
    layers = [state for layer in view.activations for state in _layer_states(layer)]
    units = view.group.units
    products = () if view.products is None else view.products.of(view.group)
    multiplied = np.sum([product.scores(units) for product in products], axis=0) if products else None
    if not layers:
        return view.unscored if multiplied is None else multiplied
    scores, worst = np.zeros(len(units)), 0.0
    left = np.arange(len(units))
    portion = -(-len(units) // _ROUNDS)
    while len(left):
        costs = np.sum([layer.costs(units[left]) for layer in layers], axis=0)
        cheapest = np.argsort(costs, kind="stable")[:portion]
        scores[left[cheapest]] = np.maximum(costs[cheapest], worst)  # costs only grow, apart from rounding
        worst = float(scores[left[cheapest]].max())
        for layer in layers:
            layer.remove(units[left[cheapest]])
        left = np.delete(left, cheapest)
    return scores if multiplied is None else scores + multiplied


def _layer_states(layer: LayerActivations) -> Iterator[_LayerState]:
    scale = 1 / layer.variance
    for covariance, weight, units in zip(layer.covariance, layer.parameters, layer.units, strict=True):
        ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        yield _LayerState(weight[:, :-1], inverse, units, scale)


class _LayerState:
    """A conv group of a layer during the removal of its input channels."""

    def __init__(self, weight: Rows, inverse: Rows, units: Ids, scale: float) -> None:
        """Take weights (outputs, features), inverse covariance, each feature's unit, and a factor for costs."""
        self._weight, self._inverse, self._units, self._scale = weight, inverse, units, scale

    def costs(self, units: Ids) -> Rows:
        """Return the cost of removing each unit with all its features, shape (units,)."""
        order = np.argsort(self._units, kind="stable")
        first, last = (np.searchsorted(self._units, units, side, sorter=order) for side in ("left", "right"))
        costs = np.zeros(len(units))
        for size in np.unique(last - first):
            which = np.flatnonzero(last - first == size)
            index = order[first[which, None] + np.arange(size)]
            corner = self._inverse[index[:, :, None], index[:, None, :]]
            block = self._weight[:, index].transpose(1, 2, 0)  # (units, features of one, outputs)
            solved = block / corner if size == 1 else np.linalg.solve(corner, block)
            costs[which] = np.einsum("ufo,ufo->u", block, solved)
        return np.asarray(np.maximum(costs, 0) * self._scale)

    def remove(self, units: Ids) -> None:
        """Remove units and refit the weights of the others."""
        gone = np.isin(self._units, units)
        if gone.any():
            solved = np.linalg.solve(self._inverse[np.ix_(gone, gone)], self._inverse[gone])
            self._weight = (self._weight - self._weight[:, gone] @ solved)[:, ~gone]
            self._inverse = (self._inverse - self._inverse[:, gone] @ solved)[np.ix_(~gone, ~gone)]
            self._units = self._units[~gone]
