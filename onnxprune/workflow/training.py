"""Training as a part of other work: its state lies in a file beside the records of that work."""

from __future__ import annotations

import logging
from pathlib import Path

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.model.resumable import Records
from onnxprune.progress import Progress, silent
from onnxprune.settings import TrainSettings
from onnxprune.train.finetune import FineTuned, finetune

log = logging.getLogger(__name__)

_EVERY = 50  # training steps between two checkpoints


def train(
    model: ModelProto,
    data: Dataset,
    teacher: ModelProto,
    settings: TrainSettings,
    records: Records,
    *,
    name: str = "training",
    examples: int = 0,
    progress: Progress = silent,
) -> FineTuned:
    """Train a model with its original as teacher; its state is kept in a file beside the records.

    Raises:
        TrainingError: it can't be trained.
    """
    path = _file(records, name)
    tuned = finetune(
        *(model, data),
        teacher=teacher,
        settings=settings,
        progress=progress,
        checkpoint=path,
        every=0 if path is None else _EVERY,
        resume=records.resumes,
        examples=examples,
    )
    if tuned.failure is not None:
        log.warning("%s; the best model before the failure is kept", tuned.failure.cause)
    return tuned


def forget_training(records: Records, name: str) -> None:
    """Delete the state of a training."""
    if (path := _file(records, name)) is not None:
        path.unlink(missing_ok=True)


def _file(records: Records, name: str) -> Path | None:
    path = records.path
    return None if path is None else path.with_name(f"{path.stem}.{name}{path.suffix or '.npz'}")
