"""The environment of a measurement: processor, cores, clock, load, devices and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnxprune.runtime.library import import_onnxruntime
from onnxprune.version import __version__

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BUSY = 0.3  # load per core above which timings are unreliable


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of a measurement.

    Attributes:
        date: date and time, UTC.
        system: operating system and machine type.
        cpu: the processor's model.
        cores: number of cores that this process may use.
        governor: the CPU frequency governor, None if unknown.
        load: load average of the last minute, None if unknown.
        gpus: NVIDIA GPUs with their drivers.
        python: version of Python.
        onnxruntime: ONNX Runtime's version and build.
        packages: versions of the relevant packages.
    """

    date: str
    system: str
    cpu: str
    cores: int
    governor: str | None
    load: float | None
    gpus: tuple[str, ...]
    python: str
    onnxruntime: str
    packages: dict[str, str]

    @property
    def hardware(self) -> tuple[str, ...]:
        """The hardware; times are comparable only between equal ones."""
        return self.cpu, str(self.cores), *self.gpus

    @property
    def busy(self) -> bool:
        """Whether other processes were running."""
        return self.load is not None and self.load > _BUSY * self.cores


def environment() -> Environment:
    """Return the current environment.

    Raises:
        UsageError: ONNX Runtime isn't installed (OP601).
    """
    runtime = import_onnxruntime()
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_model(),
        cores=usable_cores(),
        governor=_read(_GOVERNOR),
        load=_load(),
        gpus=gpus(),
        python=platform.python_version(),
        onnxruntime=f"{runtime.__version__} ({runtime.get_device()} build)",
        packages={"onnxprune": __version__, **versions("onnx", "numpy")},
    )


def cpu_model() -> str:
    """Return the processor's name."""
    info = _read(Path("/proc/cpuinfo")) or ""
    named = (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or "unknown processor")


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def gpus() -> tuple[str, ...]:
    """Return NVIDIA GPUs with their drivers, from nvidia-smi; none without it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return tuple(line.strip().replace(", ", ", driver ") for line in found.stdout.splitlines() if line.strip())
    return ()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of packages, without those that aren't installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _load() -> float | None:
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def _read(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return None
