"""What trains: a backend takes a job and gives back a model and what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import TrainingError
from onnxprune.model.session import Provider
from onnxprune.train.history import Epoch, Progress
from onnxprune.train.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Job:
    """A training to be done.

    Attributes:
        model: a normalized model; it isn't to be changed.
        data: the samples to learn from.
        settings: how.
        teacher: the original model, if it is to be learnt from.
        judge: tells what a model is worth, more being better; None if nothing judges.
        start: what the model is worth before.
        progress: told after each step.
        checkpoint: where to keep checkpoints.
        every: a checkpoint is written after so many steps, besides one after each epoch; 0 for these only.
        resume: whether to go on from the checkpoint, if there is one.
        fingerprint: of all that the outcome depends on.
        providers: execution providers, in order of preference.
        threads: threads within an operator; ONNX Runtime's default if None.
    """

    model: ModelProto
    data: Dataset
    settings: TrainSettings
    teacher: ModelProto | None = None
    judge: Callable[[ModelProto], float] | None = None
    start: float | None = None
    progress: Callable[[Progress], None] = field(default=lambda progress: None)
    checkpoint: Path | None = None
    every: int = 0
    resume: bool = False
    fingerprint: str = ""
    providers: Sequence[Provider] = ("CPUExecutionProvider",)
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training.

    Attributes:
        model: the model, the best of all epochs where something judges; the last one if weights were made sparse.
        history: the epochs, if the backend tells.
        epoch: the epoch that the model is of; 0 for none.
        failure: why the training ended early, if it went astray; the model is the best before that.
    """

    model: ModelProto
    history: tuple[Epoch, ...] = ()
    epoch: int | None = None
    failure: TrainingError | None = None


class TrainingBackend(Protocol):
    """Trains models."""

    def train(self, job: Job) -> Trained:
        """Train a model.

        Raises:
            TrainingError: it can't be trained.
        """
