"""Where models are timed for some hardware: on it if it is here, else nowhere, which is said."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from onnxprune.runtime.library import import_onnxruntime
from onnxprune.runtime.provider import Provider, parse_provider
from onnxprune.settings.hardware import HARDWARE, Hardware

_AVX512_BLOCK = 16


def place(hardware: Hardware | None) -> tuple[Provider, bool, tuple[str, ...]]:
    """Return the provider to run models on, whether times there are those of the hardware, and what to tell of it.

    Args:
        hardware: the hardware that a model is for; None for this machine's CPU.

    Examples:
        >>> provider, here, _ = place(None)
        >>> provider.short, here
        ('cpu', True)
    """
    cpu = parse_provider("cpu")
    if hardware is None:
        return cpu, True, ()
    name = next(name for name, known in HARDWARE.items() if known is hardware)
    notes = [f"{name}: {hardware.why} ({hardware.source})"]
    wanted, missing = parse_provider(hardware.provider), ""
    if wanted.name not in import_onnxruntime().get_available_providers():
        missing = f"{wanted.name} isn't here"
    elif hardware.machine and hardware.machine not in (platform.machine(), *_flags()):
        missing = f"this machine's processor has no {hardware.machine}"
    if missing:
        return cpu, False, (*notes, f"{missing}, so nothing is timed: stages are kept by answers and size")
    return wanted, True, tuple(notes)


def block(widths: Iterable[int]) -> int | None:
    """Return how many channels ONNX Runtime's convolutions compute at once here; None if unknown, or no layer has two.

    With AVX-512, channels are laid out in blocks of 16, and the rest of a block is filled with zeros: a layer of 24
    channels takes as long as one of 32 (NCHWc, see onnxruntime/core/mlas).
    """
    wide = any(width >= 2 * _AVX512_BLOCK for width in widths)
    return _AVX512_BLOCK if wide and "avx512f" in _flags() else None


def _flags() -> list[str]:
    """Return the features of this machine's processor, as Linux names them; none elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return line.partition(":")[2].split()
    return []
