"""An additive model of a network's time: the sum over its layers, each fitted to what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxprune.latency.rungs import State
from onnxprune.latency.sizes import Sizes
from onnxprune.latency.work import Work

Numbers = NDArray[np.float64]

_STEPPED = 4  # choices up to which a layer's staircase is told from the samples
_RIDGE = 1.0  # how many samples a step of the staircase must be seen in to be half believed
_LEAST = 1e-7  # seconds
_SMALLEST = 0.01  # of a network's time that any version of it takes


class LayerModel:
    """Seconds of one layer in any state.

    A start-up time, plus work and traffic at constant rates, none of them negative, fitted to relative errors. What is
    left over is put down to the rungs of the choices (a staircase: counts that fill no whole vectors are slower than
    the line says), as factors, shrunk toward one as there are few samples.
    """

    def __init__(
        self, work: Work, sizes: Sizes, states: Sequence[State], seconds: Numbers, rungs: Sequence[int]
    ) -> None:
        """Fit a layer.

        Args:
            work: the layer.
            sizes: shapes in every state.
            states: the states that it was measured in.
            seconds: what was measured, shape (states,).
            rungs: how many rungs each of all choices has.
        """
        self._work, self._sizes = work, sizes
        self._known: dict[tuple[int, ...], Numbers] = {}
        seconds = np.maximum(seconds, _LEAST)
        features = np.array([self._features(state) for state in states])
        self._rates = fit_rates(features, seconds)
        self._offsets: dict[int, int] = {}
        if 0 < len(work.choices) <= _STEPPED:
            ends = np.cumsum([0, *(rungs[c] for c in work.choices)]).tolist()
            self._offsets = dict(zip(work.choices, ends, strict=False))
            seen = np.zeros((len(states), ends[-1]))
            for row, state in zip(seen, states, strict=True):
                row[[at + state[c] for c, at in self._offsets.items()]] = 1.0
            rest = np.log(seconds / np.maximum(features @ self._rates, _LEAST))
            self._steps = np.linalg.solve(seen.T @ seen + _RIDGE * np.eye(ends[-1]), seen.T @ rest)

    def __call__(self, state: State) -> Numbers:
        """Return the layer's seconds, multiply-accumulates and bytes in a state, shape (3,)."""
        key = tuple(state[list(self._work.choices)].tolist())
        if key not in self._known:
            features = self._features(state)
            line = max(float(features @ self._rates), _LEAST)
            steps = sum(self._steps[at + state[c]] for c, at in self._offsets.items())
            self._known[key] = np.array([line * float(np.exp(steps)), *features[1:]])
        return self._known[key]

    def _features(self, state: State) -> Numbers:
        return np.array([1.0, self._work.macs(self._sizes, state), self._work.traffic(self._sizes, state)])


class NetworkModel:
    """Seconds of a network in any state: a constant, and for every layer what it takes, computes and moves, at rates.

    Where only the original was measured as a whole, layers count as they were measured. Measuring them takes time
    itself, a little for each, the same in every state, so the constant lowers the sum by what it exceeds the whole by;
    where it doesn't, something disturbed the machine, which says nothing. Where more states were measured as a whole,
    for layers that were run by themselves are only a hint at what they take in company, the rates are fitted to those.
    """

    def __init__(
        self,
        works: Sequence[Work],
        sizes: Sizes,
        states: Sequence[State],
        seconds: Numbers,
        rungs: Sequence[int],
        wholes: Sequence[tuple[State, float]] = (),
    ) -> None:
        """Fit all layers, then the network.

        Args:
            works: the layers.
            sizes: shapes in every state.
            states: the states that they were measured in.
            seconds: what was measured, shape (states, layers).
            rungs: how many rungs each choice has.
            wholes: states in which the network was measured as a whole, with the seconds that it took; if there is but
                one it is the original.
        """
        self._layers = [LayerModel(w, sizes, states, seconds[:, i], rungs) for i, w in enumerate(works)]
        self._readers: list[list[int]] = [[] for _ in rungs]
        for i, work in enumerate(works):
            for choice in work.choices:
                self._readers[choice].append(i)
        self._rates, self._constant, self._floor = np.array([1.0, 0.0, 0.0]), 0.0, 0.0
        if len(wholes) > 1:
            features = np.array([[1.0, *self._sums(state)] for state, _ in wholes])
            self._constant, *rates = fit_rates(features, np.array([whole for _, whole in wholes])).tolist()
            self._rates = np.array(rates)
        elif wholes:
            ((state, whole),) = wholes
            self._constant = min(0.0, whole - self(state))
        self._floor = _SMALLEST * self(np.zeros(len(rungs), dtype=np.int64))

    def __call__(self, state: State) -> float:
        """Return the network's seconds in a state."""
        return max(float(self._sums(state) @ self._rates) + self._constant, self._floor)

    def _sums(self, state: State) -> Numbers:
        return np.asarray(np.sum([layer(state) for layer in self._layers], axis=0))

    def around(self, state: State, rungs: Sequence[int]) -> list[Numbers]:
        """Return for every choice what its layers take at each of its rungs, all others being as in a state."""
        costs = []
        for choice, count in enumerate(rungs):
            other, own = state.copy(), np.empty(count)
            for rung in range(count):
                other[choice] = rung
                own[rung] = sum(float(self._layers[i](other) @ self._rates) for i in self._readers[choice])
            costs.append(own)
        return costs


def fit_rates(features: Numbers, seconds: Numbers) -> Numbers:
    """Fit times as sums of features at rates that aren't negative, by the least squares of relative errors.

    The few features allow to try every subset of them; the best one whose rates are all positive is the solution
    (Lawson and Hanson, Solving least squares problems, 1974, chapter 23, solve the same for many).

    Args:
        features: of every sample, shape (samples, features).
        seconds: measured, shape (samples,).

    Returns:
        The rates, shape (features,).
    """
    relative = features / seconds[:, None]
    scale = np.abs(relative).max(axis=0)
    usable = np.flatnonzero(scale > 0)
    best, least = np.zeros(features.shape[1]), float("inf")
    for size in range(1, len(usable) + 1):
        for some in map(list, combinations(usable.tolist(), size)):
            rates, *_ = np.linalg.lstsq(relative[:, some] / scale[some], np.ones(len(seconds)), rcond=None)
            error = float(np.square(relative[:, some] / scale[some] @ rates - 1).sum())
            if (rates >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(features.shape[1]), error
                best[some] = rates / scale[some]
    return best
