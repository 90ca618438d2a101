"""Training as a part of other work: its state lies in a file beside the records of that work."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from onnxprune.data import Dataset, split
from onnxprune.errors import TrainingError
from onnxprune.model.resumable import Records
from onnxprune.progress import Progress, silent
from onnxprune.settings import PruneSettings, TrainSettings
from onnxprune.trace.graph import ChannelGraph
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.train.mimicry import following, mimicry
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.pruning import Pruned

log = logging.getLogger(__name__)

_EVERY = 50  # training steps between two checkpoints
_HELD_BACK, _OF_MIMICRY = 0.1, 0.2  # shares of the samples that tell which epoch is best


@dataclass(frozen=True, slots=True)
class Training:
    """How pruned models are trained.

    Attributes:
        settings: the settings.
        mimics: whether they repair without labels, by `onnxprune.train.mimicry`, and never make it worse.
    """

    settings: TrainSettings
    mimics: bool = False

    @property
    def held_back(self) -> float:
        """The share of the samples that tells which epoch is best."""
        return _OF_MIMICRY if self.mimics else _HELD_BACK

    def shared(self, trainings: int) -> Training:
        """Return how each of several models is trained within the time for all."""
        minutes = self.settings.minutes
        return self if minutes is None else replace(self, settings=replace(self.settings, minutes=minutes / trainings))

    def hold_back(self, data: Dataset) -> tuple[Dataset, Dataset]:
        """Divide samples into those to fit to, by repair and training, and those that tell which epoch is best.

        Raises:
            DataError: there are too few (OP712).
        """
        return split(data, self.held_back, seed=self.settings.seed)


def training_of(settings: PruneSettings, graph: ChannelGraph) -> Training | None:
    """Return how a run trains what it prunes; None if it doesn't.

    Args:
        settings: the settings of the run.
        graph: the traced original.
    """
    seed = settings.planning.seed
    if settings.finetune is not None:
        return Training(TrainSettings(epochs=settings.finetune, seed=seed))
    epochs, minutes = settings.repair_epochs, settings.repair_minutes
    if epochs is None and minutes is None:
        return None
    return Training(mimicry(graph, epochs=epochs, minutes=minutes, seed=seed), mimics=True)


def train(
    pruned: Pruned,
    data: Dataset,
    held_back: Dataset | None,
    analysis: TracedModel,
    training: Training,
    records: Records,
    *,
    name: str = "training",
    examples: int = 0,
    progress: Progress = silent,
) -> FineTuned | None:
    """Train a pruned model with its original as teacher; its state is kept in a file beside the records.

    Args:
        pruned: the model, perhaps repaired.
        data: the samples to train on.
        held_back: the samples to compare epochs on.
        analysis: the traced original, at the resolution of the plan.
        training: how.
        records: what is done already.
        name: the name of this training in the records.
        examples: number of samples on which the result and the original disagree most to keep.
        progress: called after each step.

    Returns:
        The result; None if a model that mimics can't be trained or judged, which is said.

    Raises:
        TrainingError: it can't be trained.
    """
    path, settings, mimics = _file(records, name), training.settings, training.mimics
    if mimics:
        settings = following(settings, pruned.kept, pruned.proto, pruned.teacher)
    try:
        tuned = finetune(
            *(pruned.proto, data),
            teacher=(analysis.teacher or analysis.graph.proto) if mimics else analysis.original,
            kept=pruned.kept if mimics else None,
            validation=held_back,
            labels=not mimics,
            settings=settings,
            progress=progress,
            checkpoint=path,
            every=0 if path is None else _EVERY,
            resume=records.resumes,
            stoppable=mimics,
            examples=examples,
        )
    except TrainingError as error:
        if not mimics:
            raise
        log.warning("not repaired with gradients: %s", error.cause)
        return None
    if mimics and tuned.metric is None:
        log.warning("not repaired with gradients: no metric could tell whether that makes it better")
        return None
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
