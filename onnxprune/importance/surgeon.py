"""Reconstruction error: what is lost when a unit leaves and its readers are refitted.

Removing the inputs B of a layer with weights W and input covariance C, and refitting the rest by least squares, costs
tr(W_B (C^-1_BB)^-1 W_B^T) of mean squared output error (Hassibi and Stork, "Second order derivatives for network
pruning: optimal brain surgeon", NIPS 1992, with a layer's quadratic error in the place of the loss, and all inputs of a
channel in the place of one weight). Channels are taken out greedily, the cheapest first, weights and inverse updated in
between, so that of two channels that can stand in for each other only one is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.channels.values import Ids
from onnxprune.importance.base import GroupView, Scores
from onnxprune.importance.readings import Reading
from onnxprune.importance.registry import criterion
from onnxprune.recover.lstsq import Rows

# A group is emptied in so many rounds: one channel a round costs more, and gains nothing that could be measured.
_ROUNDS = 48
_RIDGE = 1e-3


@criterion(
    "obs", reads="a convolution or matrix product that reads it with weights of its own", comparable=True, data=True
)
def obs(view: GroupView) -> Scores:
    """Score a unit by the output error that its removal adds once its readers are refitted, cheaper ones having left.

    Errors are relative to the variance of a reader's output, and add up over readers.
    """
    patients = [p for reading in view.readings for p in _patients(reading)]
    units = view.group.units
    if not patients:
        return view.unscored
    scores, worst = np.zeros(len(units)), 0.0
    left = np.arange(len(units))
    portion = -(-len(units) // _ROUNDS)
    while len(left):
        costs = np.sum([p.costs(units[left]) for p in patients], axis=0)
        next_ = np.argsort(costs, kind="stable")[:portion]
        scores[left[next_]] = np.maximum(costs[next_], worst)  # rounding apart, costs only grow
        worst = float(scores[left[next_]].max())
        for p in patients:
            p.remove(units[left[next_]])
        left = np.delete(left, next_)
    return scores


def _patients(reading: Reading) -> Iterator[_Patient]:
    scale = 1 / reading.variance
    for covariance, weight, units in zip(reading.covariance, reading.parameters, reading.units, strict=True):
        ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        yield _Patient(weight[:, :-1], inverse, units, scale)


class _Patient:
    """A conv group of a layer from which channels are taken."""

    def __init__(self, weight: Rows, inverse: Rows, units: Ids, scale: float) -> None:
        """Take the weights (outputs, features), the inverse covariance, every feature's unit, and what costs count."""
        self._weight, self._inverse, self._units, self._scale = weight, inverse, units, scale

    def costs(self, units: Ids) -> Rows:
        """Return what each unit costs, shape (units,); all features of a unit leave together."""
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
        """Take units out and refit the others."""
        gone = np.isin(self._units, units)
        if gone.any():
            solved = np.linalg.solve(self._inverse[np.ix_(gone, gone)], self._inverse[gone])
            self._weight = (self._weight - self._weight[:, gone] @ solved)[:, ~gone]
            self._inverse = (self._inverse - self._inverse[:, gone] @ solved)[np.ix_(~gone, ~gone)]
            self._units = self._units[~gone]
