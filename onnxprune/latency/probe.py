"""Measuring layers: some pruned versions of the network are run, and what each layer takes is read from the profile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.isolated import isolated
from onnxprune.benchmarking.layers import heads
from onnxprune.benchmarking.profile import profile
from onnxprune.benchmarking.session import Feeds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.latency.rungs import State
from onnxprune.latency.sizes import Sizes
from onnxprune.latency.table import Table
from onnxprune.latency.work import Work

Numbers = NDArray[np.float64]

_RANDOM = 14  # probes besides the uniform ones
_SECONDS = 0.2  # of profiling each
_RUNS = 60  # at most


def probe_states(rungs: Sequence[int], seed: int) -> list[State]:
    """Return the states to measure: all groups at the same depth, in steps, then each at a depth of its own.

    The random ones are drawn like a Latin square, so that every rung of every choice is seen about equally often, and
    with ever other rungs of its neighbors.

    Args:
        rungs: how many rungs each choice has.
        seed: of the draw.
    """
    counts = np.array(rungs, dtype=np.int64)
    depth = max(rungs, default=1)
    uniform = [np.round(share * (counts - 1)).astype(np.int64) for share in np.linspace(0, 1, depth)]
    rng = np.random.default_rng(seed)
    shares = np.stack([(rng.permutation(_RANDOM) + 0.5) / _RANDOM for _ in rungs], axis=1)
    states = [*uniform, *((row * counts).astype(np.int64) for row in shares)]
    return list({tuple(state.tolist()): state for state in states}.values())


class Probe:
    """Measures layers in states, unless the table knows them.

    Attributes:
        table: what is known.
    """

    def __init__(
        self,
        works: Sequence[Work],
        sizes: Sizes,
        table: Table,
        feeds: Feeds,
        settings: SessionSettings,
        build: Callable[[State], ModelProto],
        *,
        alone: bool = False,
    ) -> None:
        """Take what is measured.

        Args:
            works: the layers.
            sizes: their shapes in every state.
            table: what is known from before.
            feeds: inputs of the network.
            settings: the session's.
            build: makes the pruned network of a state.
            alone: whether each layer must be run by itself, for the profile doesn't tell them apart.
        """
        self.table, self._alone = table, alone
        self._works, self._sizes, self._feeds, self._settings, self._build = works, sizes, feeds, settings, build

    def __call__(self, state: State) -> Numbers:
        """Return the seconds of every layer in a state, shape (layers,)."""
        signatures = [work.signature(self._sizes, state) for work in self._works]
        unknown = {s: work.name for work, s in zip(self._works, signatures, strict=True) if s not in self.table}
        self.table.reused += sum(s in self.table for s in signatures)
        if unknown:
            seconds = self._measure(self._build(state), set(unknown.values()))
            found: dict[str, list[float]] = {signature: [] for signature in unknown}
            for work, signature in zip(self._works, signatures, strict=True):
                if work.name in seconds:  # equal layers are one, repeated
                    found.setdefault(signature, []).append(seconds[work.name])
            self.table.measured += len(unknown)
            self.table.update({signature: float(np.mean(own or [0.0])) for signature, own in found.items()})
        return np.array([self.table[s] for s in signatures])

    def _measure(self, proto: ModelProto, wanted: Collection[str]) -> dict[str, float]:
        """Return the seconds of layers by the names of their contractions, of all where that costs no more."""
        if self._alone:
            found = isolated(proto, self._feeds, self._settings, only=wanted)
        else:
            found = profile(proto, self._feeds, self._settings, seconds=_SECONDS, most=_RUNS)
        names = heads(proto)
        return {
            names[layer - 1]: sum(kernel.seconds for kernel in kernels)
            for layer, kernels in found.by_layer().items()
            if layer
        }
