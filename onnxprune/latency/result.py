"""How latency is measured for a plan, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.channels.values import Mask
from onnxprune.evaluation.intervals import Estimate
from onnxprune.runtime.provider import CPU, Provider


@dataclass(frozen=True, slots=True)
class Options:
    """How latency is measured.

    Attributes:
        provider: the execution provider.
        threads: threads within an operator, None for ONNX Runtime's default.
        cache: the folder for tables of measured layers; None for no cache.
        seed: random seed of inputs and measured configurations.
    """

    provider: Provider = field(default_factory=lambda: Provider(CPU))
    threads: int | None = None
    cache: Path | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LatencyTrial:
    """A measured plan.

    Attributes:
        predicted: the predicted latency, relative to the original's.
        measured: the measured latency, relative to the original's, with its interval.
    """

    predicted: float
    measured: Estimate


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """A plan for a latency target.

    Attributes:
        removed: whether each unit is removed, shape (units,).
        provider: the execution provider's short name.
        original: the original's latency in seconds.
        cleaned: the latency of the traced model, relative to the original's; None if that is the traced model.
        predicted: the predicted latency, relative to the original's.
        measured: the measured latency, relative to the original's, with its interval.
        importance: the share of importance kept, averaged over the layers that read it.
        tries: all measured plans; none if the network meets the target as it is.
        layers_measured: number of measured layers.
        layers_known: number of layers found in the table.
        load: the share of the processor's time that other processes took meanwhile.
    """

    removed: Mask
    provider: str
    original: float
    cleaned: Estimate | None
    predicted: float
    measured: Estimate
    importance: float
    tries: tuple[LatencyTrial, ...]
    layers_measured: int
    layers_known: int
    load: float

    def fields(self) -> dict[str, Any]:
        """Return it as JSON types, without the units."""
        return {
            "provider": self.provider,
            "original_seconds": self.original,
            "cleaned_share": None if self.cleaned is None else asdict(self.cleaned),
            "predicted_share": self.predicted,
            "measured_share": asdict(self.measured),
            "importance_kept": self.importance,
            "tries": [{"predicted": t.predicted, "measured": t.measured.value} for t in self.tries],
            "layers": {"measured": self.layers_measured, "known": self.layers_known},
            "load": self.load,
        }
