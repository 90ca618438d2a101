"""Measured times of layers, kept on disk for the hardware and the versions that they were measured with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median_low

from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.runtime.environment import environment

FORMAT = 3
_NEVER = float("inf")
_KEPT = 5  # measurements of a layer, the latest


class Table:
    """Seconds of layers by their signatures.

    Attributes:
        measured: how many were measured in this run.
        reused: how many were known from before.
    """

    def __init__(self, folder: Path | None, settings: SessionSettings) -> None:
        """Open the table of this machine and these settings; an empty one without a folder, or if there is none yet.

        A file that isn't ours, or damaged, counts for nothing: it is a cache.
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
                    self._seconds = {k: own for k, own in found.items() if own and all(0 <= v < _NEVER for v in own)}

    def __contains__(self, signature: str) -> bool:
        """Tell whether a layer was measured."""
        return signature in self._seconds

    def __getitem__(self, signature: str) -> float:
        """Return a layer's seconds: the median of what was measured, of two the shorter.

        A disturbance makes a measurement longer, so that the mean would be too long; but of many the shortest would be
        too short, and layers that were measured often would seem faster than others.
        """
        return median_low(self._seconds[signature])

    def update(self, seconds: Mapping[str, float]) -> None:
        """Note what was measured, and write it down; a folder that can't be written is no reason to stop."""
        for signature, time in seconds.items():
            self._seconds[signature] = [*self._seconds.get(signature, ()), time][-_KEPT:]
        if self._path is None:
            return
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        document = {"format": FORMAT, "key": self._key, "seconds": self._seconds}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(document, indent=0), encoding="utf-8")
            os.replace(draft, self._path)


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
