"""What happened in a training, epoch by epoch."""

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
        number: from 1.
        steps: how many steps were made, all in all.
        rate: the learning rate of its last step.
        loss: mean loss over its steps.
        parts: the same for each loss, where there are several.
        value: what the model was worth after it, None where nothing judges.
        seconds: the time it took, without judging.
    """

    number: int
    steps: int
    rate: float
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come.

    Attributes:
        step: steps made.
        steps: steps in all.
        epoch: the epoch under way, from 1.
        loss: the loss of the last step.
        rate: its learning rate.
        value: what the model was worth after the last epoch.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    rate: float
    value: float | None


def to_fields(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Describe epochs for JSON."""
    return [asdict(epoch) for epoch in history]


def to_csv(history: Sequence[Epoch]) -> str:
    """Write epochs as CSV, a column for each loss."""
    parts = list(dict.fromkeys(name for epoch in history for name in epoch.parts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", "steps", "rate", "loss", *parts, "value", "seconds"])
    for e in history:
        value = "" if e.value is None else e.value
        writer.writerow([e.number, e.steps, e.rate, e.loss, *(e.parts.get(p, "") for p in parts), value, e.seconds])
    return text.getvalue()
