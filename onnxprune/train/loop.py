"""The training loop: epochs of steps, judged, kept and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from time import perf_counter
from typing import Any, Protocol

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import DivergenceError
from onnxprune.model.file import set_tensor, weights
from onnxprune.train.backend import Job, Trained
from onnxprune.train.batches import TrainingBatches
from onnxprune.train.checkpoint import Checkpoint, read, write
from onnxprune.train.history import Epoch, Progress
from onnxprune.train.optimizers import rate

Arrays = Mapping[str, NDArray[Any]]


class Machine(Protocol):
    """Makes training steps."""

    def feed(self, batches: Sequence[Arrays], rate: float) -> dict[str, float]:
        """Make one step from one batch, or from as many as accumulate; return the mean losses."""

    @property
    def weights(self) -> Arrays:
        """The model's initializers as they are now."""

    def keep(self) -> Arrays:
        """Return all that is needed to go on."""

    def restore(self, state: Arrays, number: int) -> None:
        """Go on from what was kept after so many steps."""


class Loop:
    """Goes through the epochs of a job."""

    def __init__(self, job: Job, batches: TrainingBatches, machine: Machine) -> None:
        """Start at the beginning, or at the job's checkpoint.

        Raises:
            TrainingError: the checkpoint can't be used (OP905).
        """
        self.job, self.settings = job, job.settings
        self.batches, self.machine = batches, machine
        self.total = batches.per_epoch * job.settings.epochs
        self.warm_up = round(job.settings.warm_up * self.total)
        self.at = Checkpoint(job.fingerprint, value=job.start)
        if job.resume and job.checkpoint is not None and job.checkpoint.exists():
            self.at = read(job.checkpoint, job.fingerprint)
            machine.restore(self.at.state, self.at.step)

    def all(self) -> Trained:
        """Go through all epochs that are left, or until the loss isn't finite any more."""
        settings, failure = self.settings, None
        judged = self.job.judge is not None and not settings.sparsifies
        for number in range(self.at.step // self.batches.per_epoch, settings.epochs):
            idle = len(self.at.history) - self.at.best_epoch
            if judged and settings.patience and idle >= settings.patience:
                break
            try:
                self._epoch(number)
            except DivergenceError as error:
                failure = error
                break
        last = {} if failure else self.machine.weights
        model = with_weights(self.job.model, self.at.best if judged else last)
        epoch = self.at.best_epoch if judged else 0 if failure else len(self.at.history)
        return Trained(model, tuple(self.at.history), epoch, failure)

    def _epoch(self, number: int) -> None:
        done = self.at.step - number * self.batches.per_epoch
        started = perf_counter() - self.at.seconds
        used = 0.0
        for group in self.batches.epoch(number, done):
            used = self.settings.peak * rate(self.settings.schedule, self.at.step, self.total, self.warm_up)
            losses = self.machine.feed(group, used)
            self.at.step += 1
            if not isfinite(losses["loss"]):
                self._diverged(number)
            self.at.losses = {name: self.at.losses.get(name, 0.0) + loss for name, loss in losses.items()}
            self.job.progress(Progress(self.at.step, self.total, number + 1, losses["loss"], used, self.at.value))
            if self.job.every and self.at.step % self.job.every == 0 and self.at.step % self.batches.per_epoch:
                self.at.seconds = perf_counter() - started
                self._keep()
        means = {name: loss / self.batches.per_epoch for name, loss in self.at.losses.items()}
        seconds = perf_counter() - started
        value = None if self.job.judge is None else self.job.judge(with_weights(self.job.model, self.machine.weights))
        self.at.history.append(Epoch(number + 1, self.at.step, used, means.pop("loss"), means, value, seconds))
        self.at.losses, self.at.seconds = {}, 0.0
        if value is not None and (self.at.value is None or value > self.at.value):
            self.at.value, self.at.best, self.at.best_epoch = value, self.machine.weights, number + 1
        self._keep()

    def _keep(self) -> None:
        if self.job.checkpoint is not None:
            self.at.state = self.machine.keep()
            write(self.at, self.job.checkpoint)

    def _diverged(self, number: int) -> None:
        cause = f"the loss isn't finite any more at step {self.at.step}, in epoch {number + 1}"
        hint = f"lower the learning rate (--rate, now {self.settings.peak:g}), or clip gradients (--clip)"
        raise DivergenceError("OP907", cause, hint=hint)


def with_weights(proto: ModelProto, arrays: Mapping[str, NDArray[Any]]) -> ModelProto:
    """Return a copy of a model with other values in some initializers, in their own types."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    stored = weights(copy)
    for name, array in arrays.items():
        set_tensor(stored.tensor(name), array.astype(stored.dtype(name)))
    return copy
