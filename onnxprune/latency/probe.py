"""Layer times: measured by running pruned versions of the network, and kept in a table on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from statistics import median_low

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.isolated import isolated
from onnxprune.benchmarking.layers import layer_name, layer_nodes
from onnxprune.benchmarking.profile import profile
from onnxprune.benchmarking.session import Feeds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.latency.widths import Config
from onnxprune.latency.work import LayerWork, Sizes
from onnxprune.model.file import written_whole
from onnxprune.runtime.environment import environment

Numbers = NDArray[np.float64]

FORMAT = 3
_KEPT = 5  # latest measurements of a layer
_RANDOM = 14  # probes besides the uniform ones
_SECONDS = 0.2  # of profiling each
_RUNS = 60  # at most


class LatencyTable:
    """Seconds of layers by their signatures.

    Attributes:
        measured: number of layers measured in this run.
        reused: number of lookups answered by earlier measurements.
    """

    def __init__(self, folder: Path | None, settings: SessionSettings) -> None:
        """Open the table of this machine and these settings; it is empty if there is no folder or no file.

        The file is a cache: a foreign or damaged one is ignored.
        """
        self.measured = self.reused = 0
        self._key = _key(settings)
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:24]
        self._path = None if folder is None else folder / f"{name}.json"
        self._seconds: dict[str, list[float]] = {}
        if self._path is not None:
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                document = json.loads(self._path.read_text(encoding="utf-8"))
                if document["format"] == FORMAT and document["key"] == self._key:
                    found = {str(k): [float(v) for v in own] for k, own in document["seconds"].items()}
                    self._seconds = {k: own for k, own in found.items() if own and all(0 <= v < inf for v in own)}

    def __contains__(self, signature: str) -> bool:
        """Whether a layer was measured."""
        return signature in self._seconds

    def __getitem__(self, signature: str) -> float:
        """Return a layer's seconds: the median of its measurements, the lower one of two.

        Disturbances make measurements longer, which biases the mean; the minimum would favor layers that were measured
        often.
        """
        return median_low(self._seconds[signature])

    def update(self, seconds: Mapping[str, float]) -> None:
        """Add measurements and save the table; errors of writing are ignored."""
        for signature, time in seconds.items():
            self._seconds[signature] = [*self._seconds.get(signature, ()), time][-_KEPT:]
        if self._path is None:
            return
        document = {"format": FORMAT, "key": self._key, "seconds": self._seconds}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path) as (draft,):
                draft.write_text(json.dumps(document, indent=0), encoding="utf-8")


def _key(settings: SessionSettings) -> dict[str, object]:
    where = environment()
    return {
        "hardware": list(where.hardware),
        "onnxruntime": where.onnxruntime,
        "provider": settings.provider.name,
        "options": dict(settings.provider.options),
        "threads": settings.threads,
        "level": settings.level,
    }


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
        feeds: Feeds,
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
            feeds: inputs of the network.
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
            seconds = self._measure(self._build(config), set(unknown.values()))
            found: dict[str, list[float]] = {signature: [] for signature in unknown}
            for work, signature in zip(self._works, signatures, strict=True):
                if work.name in seconds:  # equal layers may be timed only once
                    found.setdefault(signature, []).append(seconds[work.name])
            self.table.measured += len(unknown)
            self.table.update({signature: float(np.mean(own or [0.0])) for signature, own in found.items()})
        return np.array([self.table[s] for s in signatures])

    def _measure(self, proto: ModelProto, wanted: Collection[str]) -> dict[str, float]:
        """Return the seconds of layers by name: of the wanted ones at least."""
        if self._alone:
            found = isolated(proto, self._feeds, self._settings, only=wanted)
        else:
            found = profile(proto, self._feeds, self._settings, seconds=_SECONDS, most=_RUNS)
        nodes = layer_nodes(proto)
        return {
            layer_name(nodes[layer]): sum(kernel.seconds for kernel in kernels)
            for layer, kernels in found.by_layer().items()
            if layer
        }
