"""Where something is measured: processor, cores, clock, load, versions, devices. Numbers mean little without it."""

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
_BUSY = 0.3  # processes in the queue per core above which timings are to be doubted


@dataclass(frozen=True, slots=True)
class Environment:
    """Where something was measured.

    Attributes:
        date: day and time, UTC.
        system: operating system and machine type.
        cpu: the processor's model.
        cores: cores that this process may use.
        governor: what sets the clock's speed, None if it can't be read.
        load: processes in the queue over the last minute, None where it can't be told.
        gpus: each with its driver.
        python: version of Python.
        onnxruntime: ONNX Runtime's version and build.
        packages: versions of the packages that matter.
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
        """What times may only be compared on the same of."""
        return self.cpu, str(self.cores), *self.gpus

    @property
    def busy(self) -> bool:
        """Whether other work was going on."""
        return self.load is not None and self.load > _BUSY * self.cores


def environment() -> Environment:
    """Look around.

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
    """Name the processor."""
    info = _read(Path("/proc/cpuinfo")) or ""
    named = (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or "unknown processor")


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def gpus() -> tuple[str, ...]:
    """Name NVIDIA's GPUs and their driver, as nvidia-smi tells; none where there is no such program."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return tuple(line.strip().replace(", ", ", driver ") for line in found.stdout.splitlines() if line.strip())
    return ()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those of some packages that are installed."""
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
