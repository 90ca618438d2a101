"""The file in which a long run notes what is done."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from onnxprune.model.resumable import Records
from onnxprune.settings.declare import given
from onnxprune.settings.pipeline import ShrinkSettings
from onnxprune.settings.pruning import DataSettings, PruneSettings
from onnxprune.version import __version__
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.inputs import first_inputs


def records_of(
    settings: PruneSettings | ShrinkSettings, samples: DataSettings, digest: str, analysis: TracedModel
) -> Records:
    """Return what an earlier run has done, and where this one notes what it does.

    Only a run of the same version with the same model, settings and first inputs goes on from it.

    Args:
        settings: those of the command.
        samples: those of its data.
        digest: the model's sha256.
        analysis: the traced model.

    Raises:
        TrainingError: the file can't be read, or is of other work (OP905).
    """
    if settings.checkpoint is None:
        return Records()
    chosen = {name: value for name, value in given(settings).items() if name not in ("checkpoint", "resume")}
    if not isinstance(chosen.get("data", ""), str | os.PathLike):
        chosen["data"] = type(chosen["data"]).__name__
    first = first_inputs(samples, analysis.normalized) or {}
    arrays = [(name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in first.items()]
    identity = hashlib.sha256(repr((digest, __version__, chosen, arrays)).encode()).hexdigest()
    return Records(Path(settings.checkpoint), identity, resume=settings.resume)
