"""Training backends: a backend takes a job, and returns a model and what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import TrainingError
from onnxprune.evaluation.tasks import Task
from onnxprune.model.session import Provider
from onnxprune.progress import Progress, silent
from onnxprune.recover import LeftOut
from onnxprune.runtime import plugins
from onnxprune.settings.training import TrainSettings
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.train.history import Epoch


@dataclass(frozen=True, slots=True)
class Job:
    """A training to be done.

    Attributes:
        model: a normalized model; it isn't to be changed.
        data: the samples to learn from.
        settings: how.
        teacher: the original model, if it is to be learned from.
        labels: whether to learn from labels, if there are any.
        task: what these are for.
        kept: the teacher, traced, without what was pruned; None if it isn't known.
        judge: returns a model's score, higher is better; None if models aren't scored.
        start: the model's score before training.
        progress: called after each step.
        checkpoint: where to keep checkpoints.
        every: steps between checkpoints, in addition to one after each epoch; 0 for those only.
        resume: whether to continue from the checkpoint, if there is one.
        stoppable: whether an interrupt ends the training with the best model so far.
        fingerprint: a hash of everything that the result depends on.
        providers: execution providers, in order of preference.
        threads: threads within an operator; ONNX Runtime's default if None.
    """

    model: ModelProto
    data: Dataset
    settings: TrainSettings
    teacher: ModelProto | None = None
    labels: bool = True
    task: Task | None = None
    kept: PrunedGraph | None = None
    judge: Callable[[ModelProto], float] | None = None
    start: float | None = None
    progress: Progress = field(default=silent)
    checkpoint: Path | None = None
    every: int = 0
    resume: bool = False
    stoppable: bool = False
    fingerprint: str = ""
    providers: Sequence[Provider] = ("CPUExecutionProvider",)
    threads: int | None = None

    @property
    def labeled(self) -> bool:
        """Whether it is learned from labels."""
        return self.labels and self.data.labeled


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training.

    Attributes:
        model: the model: the best epoch's where models are scored; the last one's if weights were made sparse.
        history: the epochs, if the backend reports them.
        epoch: the epoch that the model comes from; 0 for the initial model.
        epochs: the number of epochs that were to be run.
        follows: the losses of each tensor that was trained, if the backend reports them.
        failure: why the training ended early, if it diverged; the model is the best before that.
        untrained: the layers whose weights weren't trained, with the reasons.
    """

    model: ModelProto
    history: tuple[Epoch, ...] = ()
    epoch: int | None = None
    epochs: int | None = None
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failure: TrainingError | None = None
    untrained: tuple[LeftOut, ...] = ()


class TrainingBackend(Protocol):
    """Trains models. Packages may bring one, see `GROUP`."""

    def train(self, job: Job) -> Trained:
        """Train a model.

        Raises:
            TrainingError: it can't be trained.
        """


BackendFactory: TypeAlias = Callable[[Path | None], TrainingBackend]
"""Makes a backend; gets the interpreter that training is to run in, if one is given."""

GROUP = "onnxprune.training_backends"
"""The entry-point group in which a package names its backends, each a `BackendFactory`."""

_HOME = {"ort-training": "onnxprune-ort-training"}
"""The packages of known plug-ins."""

_REGISTERED: dict[str, BackendFactory] = {}


def register_backend(name: str, factory: BackendFactory) -> None:
    """Make a backend known under a name in this process, as an entry point does for an installed package."""
    _REGISTERED[name] = factory


def plugin_backend(name: str, python: Path | None) -> TrainingBackend:
    """Return a backend that was registered or that an installed package brings.

    Args:
        name: its name.
        python: the interpreter that it is to train in, if one is given.

    Raises:
        TrainingError: there is none of this name (OP908).
        UsageError: the package that brings it can't be loaded (OP607).
    """
    if name in _REGISTERED:
        return _REGISTERED[name](python)
    points = plugins.installed(GROUP, "training backend")
    if name not in points:
        known = ", ".join(["native", "module:function", *sorted({*_REGISTERED, *points})])
        hint = f"install the package {_HOME[name]}, which brings it" if name in _HOME else f"there are {known}"
        raise TrainingError("OP908", f"there is no training backend {name!r}", hint=hint)
    factory: BackendFactory = plugins.load(points[name], "training backend")
    return factory(python)
