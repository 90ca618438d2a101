"""A benchmark as a document for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnxprune.benchmark.gate import FORMAT, Change
from onnxprune.benchmark.result import Benchmark


def benchmark_fields(found: Benchmark, changes: Sequence[Change] = ()) -> Mapping[str, Any]:
    """Describe a benchmark; ``format`` grows when what `gate` reads changes its meaning."""
    return {
        "format": FORMAT,
        "hardware": list(found.environment.hardware),
        **asdict(found),
        "changes": [asdict(change) for change in changes],
    }
