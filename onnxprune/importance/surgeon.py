"""Reconstruction error: the output error when a unit is removed and the layers that read it are refitted.

Removing the inputs B of a layer with weights W and input covariance C, and refitting the rest by least squares, adds a
mean squared output error of tr(W_B (C^-1_BB)^-1 W_B^T) (Hassibi and Stork, "Second order derivatives for network
pruning: optimal brain surgeon", NIPS 1992, with a layer's quadratic error instead of the loss, and all inputs of a
channel instead of one weight). Channels are removed greedily, the cheapest first. Weights and inverse are updated in
between, so that of two channels that can replace each other only one is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.channels.values import Ids
from onnxprune.importance.activations import LayerActivations
from onnxprune.importance.base import GroupView, Scores
from onnxprune.importance.builtin import READER
from onnxprune.importance.registry import criterion
from onnxprune.recover.lstsq import Rows

# Rounds to empty a group in: one channel per round takes longer, without measurably better results.
_ROUNDS = 48
_RIDGE = 1e-3


@criterion("obs", reads=READER, comparable=True, data=True)
def obs(view: GroupView) -> Scores:
    """Score a unit by the output error that its removal adds after all cheaper ones, with its readers refitted.

    Errors are relative to the variance of a reader's output, and add up over readers.
    """
    layers = [state for layer in view.activations for state in _layer_states(layer)]
    units = view.group.units
    if not layers:
        return view.unscored
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
    return scores


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
        blocks = [np.flatnonzero(self._units == unit) for unit in units]
        costs = np.zeros(len(units))
        for size in {len(b) for b in blocks} - {0}:
            which = [i for i, block in enumerate(blocks) if len(block) == size]
            index = np.stack([blocks[i] for i in which])
            corner = self._inverse[index[:, :, None], index[:, None, :]]
            block = self._weight[:, index].transpose(1, 2, 0)  # (units, features of one, outputs)
            costs[which] = np.einsum("ufo,ufo->u", block, np.linalg.solve(corner, block))
        return np.asarray(np.maximum(costs, 0) * self._scale)

    def remove(self, units: Ids) -> None:
        """Remove units and refit the weights of the others."""
        gone = np.isin(self._units, units)
        if gone.any():
            solved = np.linalg.solve(self._inverse[np.ix_(gone, gone)], self._inverse[gone])
            self._weight = (self._weight - self._weight[:, gone] @ solved)[:, ~gone]
            self._inverse = (self._inverse - self._inverse[:, gone] @ solved)[np.ix_(~gone, ~gone)]
            self._units = self._units[~gone]
