"""From `--target latency`, `--provider` and `--threads` to where a latency is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import PlanError

if TYPE_CHECKING:
    from onnxprune.latency import Options
    from onnxprune.workflow.pipeline import PlanSettings


def latency_of(planning: Mapping[str, Any], settings: PlanSettings) -> Options | None:
    """Turn planning options into where a latency is measured; None where none is limited.

    Raises:
        PlanError: an option says how to measure, but nothing is to be measured; or it asks for an allocation that
            doesn't know about time (OP302).
        UsageError: there is no such provider (OP608).
    """
    if settings.target is None or settings.target.quantity != "latency":
        for name in ("provider", "threads"):
            if name in planning:
                cause = f"--{name} says where a latency is measured, and none is limited"
                raise PlanError("OP302", cause, hint="add --target latency=50%, or drop it")
        return None
    if planning.get("allocation", "reconstruction") != "reconstruction":
        cause = f"--allocation {planning['allocation']} doesn't look at time"
        raise PlanError("OP302", cause, hint="leave it out: --target latency has an allocation of its own")
    from onnxprune.latency import Options
    from onnxprune.runtime.provider import parse_provider

    provider = parse_provider(planning.get("provider", "cpu"))
    return Options(provider, planning.get("threads"), cache_folder(os.environ), planning.get("seed", 0))


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where measured layers are kept, by the custom of the system; ONNXPRUNE_CACHE overrides it."""
    if own := environment.get("ONNXPRUNE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune" / "latency"
