"""Tables of measured layer times, one per machine, ONNX Runtime and session settings, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from math import inf
from pathlib import Path
from statistics import median_low
from time import time
from typing import Any

from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.model.file import written_whole
from onnxprune.runtime.environment import environment
from onnxprune.runtime.load import BUSY

FORMAT = 4  # 4 added spread, load and date
_KEPT = 5  # latest measurements of a layer
_SPREAD = 0.25  # of a layer's time, from which a measurement is noisy
_RESOLUTION = 2e-6  # seconds; profiles count whole microseconds
_LARGEST = 2**28  # bytes of a file


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A measurement of a layer.

    Attributes:
        seconds: its time per run.
        spread: the range of the middle half of the runs, in seconds.
        load: the share of the cores' time that other processes took meanwhile.
        date: when it was measured, in seconds since 1970.
    """

    seconds: float
    spread: float
    load: float
    date: float

    @property
    def noisy(self) -> bool:
        """Whether it was disturbed, so that it has to be repeated in a later run."""
        return self.load > BUSY or self.spread > _SPREAD * self.seconds + _RESOLUTION


Times = dict[str, list[LayerTime]]


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
        found = None if self._path is None else _read(self._path)
        self._times: Times = found[1] if found is not None and found[0] == self._key else {}
        self._fresh: set[str] = set()

    def __contains__(self, signature: str) -> bool:
        """Whether a layer needn't be measured: it was in this run, or undisturbed in an earlier one."""
        return signature in self._fresh or any(not t.noisy for t in self._times.get(signature, ()))

    def __getitem__(self, signature: str) -> float:
        """Return a layer's seconds: the median of its undisturbed measurements, the lower one of two; or the shortest.

        Disturbances make measurements longer, which biases the mean; the minimum would favor layers that were measured
        often.
        """
        own = self._times[signature]
        quiet = [t.seconds for t in own if not t.noisy]
        return median_low(quiet) if quiet else min(t.seconds for t in own)

    def update(self, seconds: Mapping[str, tuple[float, float]], load: float = 0.0) -> None:
        """Add measurements and save the table; errors of writing are ignored.

        Args:
            seconds: the time and the spread of layers, by signature.
            load: the share of the cores' time that other processes took meanwhile.
        """
        for signature, (own, spread) in seconds.items():
            made = LayerTime(own, spread, load, round(time()))
            self._times[signature] = [*self._times.get(signature, ()), made][-_KEPT:]
            self._fresh.add(signature)
        if self._path is None:
            return
        times = {signature: list(map(astuple, own)) for signature, own in self._times.items()}
        document = {"format": FORMAT, "key": self._key, "times": times}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path) as (draft,):
                draft.write_text(json.dumps(document), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class CachedTable:
    """A table on disk.

    Attributes:
        path: its file.
        bytes: the file's size.
        key: the machine, ONNX Runtime and session settings; empty if the file is of another version, or damaged.
        layers: number of layers.
        noisy: number of layers that will be measured again.
        date: the latest measurement, in seconds since 1970; None if there is none.
        stale: whether this machine with its present ONNX Runtime never reads it.
    """

    path: Path
    bytes: int
    key: Mapping[str, Any]
    layers: int
    noisy: int
    date: float | None
    stale: bool


def cached_tables(folder: Path) -> Iterator[CachedTable]:
    """Yield the tables in a folder, in order of name."""
    here = _machine()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if not re.fullmatch(r"[0-9a-f]{24}", path.stem):  # not one of ours
            continue
        with suppress(OSError):
            size = path.stat().st_size
            key, times = _read(path) or ({}, {})
            noisy = sum(all(t.noisy for t in own) for own in times.values())
            date = max((t.date for own in times.values() for t in own), default=None)
            stale = any(key.get(name) != value for name, value in here.items())
            yield CachedTable(path, size, key, len(times), noisy, date, stale)


def clear_tables(tables: Iterable[CachedTable]) -> list[CachedTable]:
    """Delete tables, and return those that were there."""
    gone = []
    for table in tables:
        with suppress(OSError):
            table.path.unlink()
            gone.append(table)
    return gone


def cache_folder(variables: Mapping[str, str]) -> Path:
    """Return the folder for measured latencies: ONNXPRUNE_CACHE, or the system's usual cache folder.

    Args:
        variables: the environment's variables.
    """
    if own := variables.get("ONNXPRUNE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(variables.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune" / "latency"


def _read(path: Path) -> tuple[dict[str, Any], Times] | None:
    """Return a table's key and times; None if it is of another version, or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if os.path.getsize(path) > _LARGEST:
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] == FORMAT and isinstance(document["key"], dict):
            found = {str(k): [LayerTime(*map(float, v)) for v in own] for k, own in document["times"].items()}
            return document["key"], {k: own for k, own in found.items() if own and all(map(_possible, own))}
    return None


def _possible(time: LayerTime) -> bool:
    return all(0 <= value < inf for value in astuple(time))


def _machine() -> dict[str, object]:
    where = environment()
    return {"hardware": list(where.hardware), "onnxruntime": where.onnxruntime}


def _key(settings: SessionSettings) -> dict[str, object]:
    return {
        **_machine(),
        "provider": settings.provider.name,
        "options": dict(settings.provider.options),
        "threads": settings.threads,
        "level": settings.level,
    }
