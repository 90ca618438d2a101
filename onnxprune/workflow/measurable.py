"""What every axis needs for points along it to be chosen by measurement."""

from __future__ import annotations

from itertools import islice
from typing import Any

from onnxprune.data import is_noise
from onnxprune.errors import PlanError
from onnxprune.model.stream import Batches
from onnxprune.settings import PlanSettings


def why_not_measured(
    what: str,
    settings: PlanSettings,
    batches: Batches | None,
    data: Any,
    *,
    where: str,
    otherwise: str,
    alone: bool = False,
) -> PlanError | None:
    """Return why something can't be chosen by measurement, if so, as an error.

    Args:
        what: what is chosen, in the words of the errors.
        settings: how to plan, settled.
        batches: returns inputs.
        data: the samples as they were given.
        where: the setting that asks for it.
        otherwise: what to do without inputs, as a hint.
        alone: whether it can be chosen by itself without inputs.
    """
    if any(target.absolute for target in settings.timed):
        return PlanError("OP302", f"choosing {what} needs a latency relative to the original's", where="target")
    if batches is None or is_noise(data):
        cause = f"{what} can't be chosen without real inputs to measure on"
        return None if alone else PlanError("OP312", cause, where=where, hint=f"set `data`, or {otherwise}")
    if len(list(islice(batches(), 2))) < 2:
        return PlanError("OP312", f"too few inputs to hold some back, by which {what} can be chosen", where="data")
    if settings.remove_blocks or settings.constraints.ratio_for or settings.allocation != "reconstruction":
        cause = f"choosing {what} works with channels and the allocation reconstruction only"
        return PlanError("OP302", cause, where=where, hint="drop `remove_blocks`, `ratio_for` and `allocation`")
    return None
