"""What becomes of a target on latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.evaluate.intervals import Estimate
from onnxprune.trace.values import Mask


@dataclass(frozen=True, slots=True)
class Try:
    """A plan that was measured.

    Attributes:
        predicted: its latency as a share of the original's, by the model as it was then.
        measured: the share that was measured, with its interval.
    """

    predicted: float
    measured: Estimate


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a target on latency.

    Attributes:
        removed: for every unit whether it leaves, shape (units,).
        provider: the execution provider's short name.
        original: seconds of the original.
        predicted: the plan's latency as a share of the original's, by the first model, before anything was corrected.
        measured: the share that was measured.
        importance: the share of importance that layers still read, on average.
        tries: all that were measured.
        layers_measured: how many layers were measured for it.
        layers_known: how many the table knew.
    """

    removed: Mask
    provider: str
    original: float
    predicted: float
    measured: Estimate
    importance: float
    tries: tuple[Try, ...]
    layers_measured: int
    layers_known: int

    def fields(self) -> dict[str, Any]:
        """Describe it in JSON's types, without the units."""
        return {
            "provider": self.provider,
            "original_seconds": self.original,
            "predicted_share": self.predicted,
            "measured_share": {"value": self.measured.value, "low": self.measured.low, "high": self.measured.high},
            "importance_kept": self.importance,
            "tries": [{"predicted": t.predicted, "measured": t.measured.value} for t in self.tries],
            "layers": {"measured": self.layers_measured, "known": self.layers_known},
        }
