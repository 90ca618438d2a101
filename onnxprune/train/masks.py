"""Weights that are zero while a network is trained: which, and how that changes.

Methods share one training step, which multiplies weights by a mask and has the gradient of all of them:

- rigl: the smallest weights are dropped now and then, and those with the largest gradient grow in their place
  (U. Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020);
- gmp: the smallest weights become zero step by step, ever fewer at a time (M. Zhu and S. Gupta, "To prune, or not to
  prune", ICLR 2018 workshop);
- ticket: what is zero stays zero; `onnxprune.train.tickets` chooses it between trainings.

How many weights a layer keeps is its Erdos-Renyi-Kernel budget (Evci et al., section 3): small layers stay denser.
Weights of which many are zero already keep these zeros, whatever made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.settings.training import TrainSettings
from onnxprune.train.trainable import is_vector

MASK, DENSE = ":mask", ":dense"
"""Suffixes of the state: a weight's mask, and the gradient of all its elements in the last step."""

_STOP = 0.75  # of all steps, after which masks stay
_DROPPED = 0.3  # of a layer's weights, at first
_INTERVAL, _UPDATES = 100, 30  # steps between updates, at most; number of updates, at least
_SPARSE = 0.1  # share of zeros from which a weight keeps them

Arrays = Mapping[str, NDArray[Any]]
Shape = Sequence[int]


class State(Protocol):
    """The state of a training step, see `onnxprune.train.runner.HostRunner`."""

    @property
    def state(self) -> Arrays:
        """All tensors of the state."""

    def put(self, arrays: Arrays) -> None:
        """Replace some of them."""


def first_masks(weights: Arrays, settings: TrainSettings) -> dict[str, NDArray[np.float32]]:
    """Return the masks to begin with, flat; of weights that may be anything, none.

    Args:
        weights: the weights that are trained.
        settings: the method; without one, zeros are kept where there are many.
    """
    found = {name: w for name, w in weights.items() if can_be_sparse(w.shape)}
    if settings.sparse in (None, "ticket"):
        least = _SPARSE if settings.sparse is None else 1e-12
        sparse = {name: w for name, w in found.items() if settings.keep_zeros and least <= (w == 0).mean() < 1}
        return {name: (w != 0).astype(np.float32).ravel() for name, w in sparse.items()}
    if settings.sparse == "gmp":
        return {name: np.ones(w.size, np.float32) for name, w in found.items()}
    return {name: mask.ravel() for name, mask in smallest_zero(found, settings.final_sparsity).items()}


def can_be_sparse(shape: Shape) -> bool:
    """Whether a weight of a shape may get a mask: it is no vector."""
    return len(shape) > 1 and not is_vector(shape)


def smallest_zero(weights: Arrays, sparsity: float) -> dict[str, NDArray[np.float32]]:
    """Return masks, of the shapes of some weights, that drop the smallest of each layer, by the layers' budgets."""
    share = densities({name: w.shape for name, w in weights.items()}, sparsity)
    flat = {name: _largest(np.abs(w.ravel()), round(share[name] * w.size)) for name, w in weights.items()}
    return {name: mask.reshape(weights[name].shape) for name, mask in flat.items()}


def densities(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    """Return the share of weights that each layer keeps, its Erdős-Rényi-Kernel budget.

    It is in proportion to the sum of the weight's axes over their product, but at most 1; all layers together have the
    sparsity asked for.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    whole: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in whole]
        room = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in whole)
        scale = room / sum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        full = {name for name in rest if scale * raw[name] > 1}
        if not full:
            return {name: 1.0 if name in whole else max(scale, 0.0) * raw[name] for name in shapes}
        whole |= full


class Masks:
    """Changes masks during a training."""

    def __init__(self, weights: Mapping[str, Shape], runner: State, settings: TrainSettings) -> None:
        """Plan the changes.

        Args:
            weights: the weights that have masks, with their shapes.
            runner: has the state, which changes.
            settings: the method.
        """
        self.weights, self.runner, self.settings = dict(weights), runner, settings
        self.stop = 1  # the last step that changes masks

    def after(self, number: int, total: int) -> None:
        """Change masks after a step of some in all, given by its number from 1, if it is time to."""
        method, self.stop = self.settings.sparse, max(1, int(_STOP * total))
        interval = self.settings.mask_interval or max(1, min(_INTERVAL, self.stop // _UPDATES))
        if method in (None, "ticket") or number > self.stop or (number % interval and number != self.stop):
            return
        if method == "gmp":
            self.runner.put(self._fewer(number, self.runner.state))
        elif number < self.stop:
            self.runner.put(self._others(number, self.runner.state))

    def _fewer(self, number: int, state: Arrays) -> dict[str, NDArray[Any]]:
        sparsity = self.settings.final_sparsity * (1 - (1 - number / self.stop) ** 3)
        changed = dict[str, NDArray[Any]]()
        for name, mask in smallest_zero({name: state[name] for name in self.weights}, sparsity).items():
            changed |= _masked(name, state, mask.ravel())
        return changed

    def _others(self, number: int, state: Arrays) -> dict[str, NDArray[Any]]:
        part, changed = _DROPPED / 2 * (1 + cos(pi * number / self.stop)), dict[str, NDArray[Any]]()
        for name in self.weights:
            mask = state[name + MASK] != 0
            count = min(int(part * mask.sum()), int(mask.size - mask.sum()))
            kept = _largest(np.where(mask, np.abs(state[name].ravel()), -1.0), int(mask.sum()) - count) != 0
            worth = np.abs(state.get(name + DENSE, np.zeros(mask.size)))
            grown = _largest(np.where(kept, -1.0, worth), count) != 0
            changed |= _masked(name, state, (kept | grown).astype(np.float32))
        return changed


def _largest(values: NDArray[Any], count: int) -> NDArray[np.float32]:
    """Return a mask of the largest values; of equal ones, the first."""
    mask = np.zeros(values.size, np.float32)
    mask[np.argsort(-values, kind="stable")[:count]] = 1
    return mask


def _masked(name: str, state: Arrays, mask: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return a weight's state under a new mask. What is new begins at zero, and so does the optimizer for it."""
    stay = mask * state[name + MASK]
    slots = [n for n in state if n.startswith(f"{name}:") and n not in (name + MASK, name + DENSE)]
    found = {slot: (state[slot] * stay).astype(state[slot].dtype) for slot in slots if state[slot].size == mask.size}
    return {**found, name: state[name] * stay.reshape(state[name].shape), name + MASK: mask}
