"""Layer times: measured by running pruned versions of the network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.isolated import isolated
from onnxprune.benchmarking.layers import layer_name, layer_nodes
from onnxprune.benchmarking.profile import profile
from onnxprune.benchmarking.session import Feeds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.latency.table import LatencyTable
from onnxprune.latency.widths import Config
from onnxprune.latency.work import LayerWork, Sizes
from onnxprune.runtime.load import Load

Numbers = NDArray[np.float64]

_RANDOM = 14  # probes besides the uniform ones
_SECONDS = 0.2  # of profiling each
_RUNS = 60  # at most


def probe_configs(counts: Sequence[int], seed: int) -> list[Config]:
    """Return the configurations to measure: uniform ones in steps from full to smallest widths, then random ones.

    The random ones form a Latin hypercube: every width of every group occurs about equally often, combined with
    different widths of the other groups.

    Args:
        counts: number of candidate widths of each group.
        seed: random seed.
    """
    widths = np.array(counts, dtype=np.int64)
    uniform = [np.round(share * (widths - 1)).astype(np.int64) for share in np.linspace(0, 1, max(counts, default=1))]
    rng = np.random.default_rng(seed)
    shares = np.stack([(rng.permutation(_RANDOM) + 0.5) / _RANDOM for _ in counts], axis=1)
    configs = [*uniform, *((row * widths).astype(np.int64) for row in shares)]
    return list({tuple(config.tolist()): config for config in configs}.values())


class Probe:
    """Measures the layers of configurations that the table lacks.

    Attributes:
        table: the layers' times.
    """

    def __init__(
        self,
        works: Sequence[LayerWork],
        sizes: Sizes,
        table: LatencyTable,
        feeds: Callable[[ModelProto], Feeds],
        settings: SessionSettings,
        build: Callable[[Config], ModelProto],
        *,
        alone: bool = False,
    ) -> None:
        """Set up measurements.

        Args:
            works: the layers.
            sizes: their shapes in any configuration.
            table: the layers' times, as far as known.
            feeds: returns inputs of a pruned network.
            settings: the session's settings.
            build: builds the pruned network of a configuration.
            alone: whether each layer has to be run alone, since profiles lack layer times.
        """
        self.table, self._alone = table, alone
        self._works, self._sizes, self._feeds, self._settings, self._build = works, sizes, feeds, settings, build

    def __call__(self, config: Config) -> Numbers:
        """Return the seconds of each layer in a configuration, shape (layers,)."""
        signatures = [work.signature(self._sizes, config) for work in self._works]
        unknown = {s: work.name for work, s in zip(self._works, signatures, strict=True) if s not in self.table}
        self.table.reused += sum(s in self.table for s in signatures)
        if unknown:
            load = Load()
            times = self._measure(self._build(config), set(unknown.values()))
            found: dict[str, list[tuple[float, float]]] = {signature: [] for signature in unknown}
            for work, signature in zip(self._works, signatures, strict=True):
                if work.name in times:  # equal layers may be timed only once
                    found.setdefault(signature, []).append(times[work.name])
            self.table.measured += len(unknown)
            means = {signature: np.mean(own or [(0.0, 0.0)], axis=0).tolist() for signature, own in found.items()}
            self.table.update(means, load.share())
        return np.array([self.table[s] for s in signatures])

    def _measure(self, proto: ModelProto, wanted: Collection[str]) -> dict[str, tuple[float, float]]:
        """Return the seconds of layers and their spread by name: of the wanted ones at least."""
        if self._alone:
            found = isolated(proto, self._feeds(proto), self._settings, only=wanted)
        else:
            found = profile(proto, self._feeds(proto), self._settings, seconds=_SECONDS, most=_RUNS)
        nodes = layer_nodes(proto)
        return {
            layer_name(nodes[layer]): (sum(k.seconds for k in kernels), sum(k.spread for k in kernels))
            for layer, kernels in found.by_layer().items()
            if layer
        }
