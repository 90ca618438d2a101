"""An additive model of a network's time: the sum over its layers, each fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxprune.latency.widths import Config
from onnxprune.latency.work import LayerWork, Sizes

Numbers = NDArray[np.float64]

_STEPPED = 4  # maximum number of groups of layers with fitted step effects
_RIDGE = 1.0  # number of samples at which half of a step effect is kept
_LEAST = 1e-7  # seconds
_SMALLEST = 0.01  # minimum time of any configuration, relative to the original


class LayerModel:
    """Seconds of one layer in any configuration.

    A constant plus work and traffic at constant rates, all non-negative, fitted to relative errors. The residuals are
    attributed to the groups' widths as factors (steps: widths that don't fill whole vectors are slower than the linear
    fit), shrunk toward one since there are few samples.
    """

    def __init__(
        self, work: LayerWork, sizes: Sizes, configs: Sequence[Config], seconds: Numbers, counts: Sequence[int]
    ) -> None:
        """Fit a layer.

        Args:
            work: the layer.
            sizes: shapes in any configuration.
            configs: the measured configurations.
            seconds: the measured times, shape (configs,).
            counts: number of candidate widths of each group.
        """
        self._work, self._sizes = work, sizes
        self._known: dict[tuple[int, ...], Numbers] = {}
        seconds = np.maximum(seconds, _LEAST)
        features = np.array([self._features(config) for config in configs])
        self._rates = fit_rates(features, seconds)
        self._offsets: dict[int, int] = {}
        if 0 < len(work.groups) <= _STEPPED:
            ends = np.cumsum([0, *(counts[c] for c in work.groups)]).tolist()
            self._offsets = dict(zip(work.groups, ends, strict=False))
            seen = np.zeros((len(configs), ends[-1]))
            for row, config in zip(seen, configs, strict=True):
                row[[at + config[c] for c, at in self._offsets.items()]] = 1.0
            rest = np.log(seconds / np.maximum(features @ self._rates, _LEAST))
            self._steps = np.linalg.solve(seen.T @ seen + _RIDGE * np.eye(ends[-1]), seen.T @ rest)

    def __call__(self, config: Config) -> Numbers:
        """Return the layer's seconds, multiply-accumulates and bytes in a configuration, shape (3,)."""
        key = tuple(config[list(self._work.groups)].tolist())
        if key not in self._known:
            features = self._features(config)
            line = max(float(features @ self._rates), _LEAST)
            steps = sum(self._steps[at + config[c]] for c, at in self._offsets.items())
            self._known[key] = np.array([line * float(np.exp(steps)), *features[1:]])
        return self._known[key]

    def _features(self, config: Config) -> Numbers:
        return np.array([1.0, self._work.macs(self._sizes, config), self._work.traffic(self._sizes, config)])


class NetworkModel:
    """Seconds of a network in any configuration: a constant plus its layers' times, work and traffic at rates.

    If only the original was measured as a whole, the layers' times are summed. Profiling adds a small constant to each,
    so a constant lowers the sum to the whole if it exceeds it; a larger whole is taken as a disturbance and ignored. If
    several configurations were measured as a whole, since times of layers run alone differ from those inside the
    network, the rates are fitted to these.
    """

    def __init__(
        self,
        works: Sequence[LayerWork],
        sizes: Sizes,
        configs: Sequence[Config],
        seconds: Numbers,
        counts: Sequence[int],
        wholes: Sequence[tuple[Config, float]] = (),
    ) -> None:
        """Fit all layers, then the network.

        Args:
            works: the layers.
            sizes: shapes in any configuration.
            configs: the configurations in which layers were measured.
            seconds: the measured times, shape (configs, layers).
            counts: number of candidate widths of each group.
            wholes: configurations in which the whole network was measured, with its seconds; a single one is that of
                the original.
        """
        self._layers = [LayerModel(w, sizes, configs, seconds[:, i], counts) for i, w in enumerate(works)]
        self._readers: list[list[int]] = [[] for _ in counts]
        for i, work in enumerate(works):
            for group in work.groups:
                self._readers[group].append(i)
        self._rates, self._constant, self._floor = np.array([1.0, 0.0, 0.0]), 0.0, 0.0
        if len(wholes) > 1:
            features = np.array([[1.0, *self._sums(config)] for config, _ in wholes])
            self._constant, *rates = fit_rates(features, np.array([whole for _, whole in wholes])).tolist()
            self._rates = np.array(rates)
        elif wholes:
            ((config, whole),) = wholes
            self._constant = min(0.0, whole - self(config))
        self._floor = _SMALLEST * self(np.zeros(len(counts), dtype=np.int64))

    def __call__(self, config: Config) -> float:
        """Return the network's seconds in a configuration."""
        return max(float(self._sums(config) @ self._rates) + self._constant, self._floor)

    def _sums(self, config: Config) -> Numbers:
        return np.asarray(np.sum([layer(config) for layer in self._layers], axis=0))

    def around(self, config: Config, counts: Sequence[int]) -> list[Numbers]:
        """Return the time of each group's layers at each of its widths, with all other groups as in a configuration."""
        costs = []
        for group, count in enumerate(counts):
            other, own = config.copy(), np.empty(count)
            for width in range(count):
                other[group] = width
                own[width] = sum(float(self._layers[i](other) @ self._rates) for i in self._readers[group])
            costs.append(own)
        return costs


def fit_rates(features: Numbers, seconds: Numbers) -> Numbers:
    """Fit times as sums of features at non-negative rates, by least squares of relative errors.

    All subsets of the few features are tried; the best with non-negative rates is the solution (Lawson and Hanson,
    Solving least squares problems, 1974, chapter 23, treat the general problem).

    Args:
        features: features of the samples, shape (samples, features).
        seconds: measured times, shape (samples,).

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
