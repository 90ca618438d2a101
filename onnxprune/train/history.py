"""The history of a training."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass through the data.

    Attributes:
        number: its number, from 1.
        steps: total number of steps so far.
        rate: the learning rate of its last step.
        loss: mean loss over its steps.
        parts: mean of each loss, if there are several.
        value: the validation value after it, None without validation.
        seconds: its duration, without validation.
        skipped: steps that changed nothing, as the loss or the gradient wasn't finite.
    """

    number: int
    steps: int
    rate: float
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    seconds: float = 0.0
    skipped: int = 0


def to_fields(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Return epochs as JSON types."""
    return [asdict(epoch) for epoch in history]


def to_csv(history: Sequence[Epoch]) -> str:
    """Return epochs as CSV, with a column for each loss."""
    parts = list(dict.fromkeys(name for epoch in history for name in epoch.parts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", "steps", "rate", "loss", *parts, "value", "seconds", "skipped"])
    for e in history:
        value = "" if e.value is None else e.value
        losses = [e.loss, *(e.parts.get(p, "") for p in parts)]
        writer.writerow([e.number, e.steps, e.rate, *losses, value, e.seconds, e.skipped])
    return text.getvalue()
