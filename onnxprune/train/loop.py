"""The training loop: epochs of steps, with validation, checkpoints and reports of progress."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from time import perf_counter
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxprune.errors import DivergenceError
from onnxprune.model.tensors import with_weights
from onnxprune.train.backend import Job, Trained
from onnxprune.train.batches import TrainingBatches
from onnxprune.train.checkpoint import Checkpoint, read, write
from onnxprune.train.history import Epoch
from onnxprune.train.masks import Masks
from onnxprune.train.optimizers import rate
from onnxprune.train.step import SKIPPED

log = logging.getLogger(__name__)

_IN_A_ROW = 5  # skipped steps that count as divergence
_TIMED = 4  # steps by which the time of an epoch is estimated
_OVERRUN = 1.2  # times the time allowed, after which training ends: the machine has become slower

Arrays = Mapping[str, NDArray[Any]]


class StepRunner(Protocol):
    """Runs training steps."""

    def step(self, batches: Sequence[Arrays], rate: float) -> dict[str, float]:
        """Run one step on one batch, or on several that accumulate; return the mean losses, and `SKIPPED`."""

    @property
    def weights(self) -> Arrays:
        """The model's current initializers."""

    @property
    def state(self) -> Arrays:
        """Everything needed to resume."""

    def load_state(self, state: Arrays, number: int) -> None:
        """Resume from the state after a number of steps that weren't skipped."""


class Loop:
    """Runs the epochs of a job."""

    def __init__(self, job: Job, batches: TrainingBatches, runner: StepRunner, masks: Masks | None = None) -> None:
        """Start at the beginning, or at the job's checkpoint.

        Args:
            job: the job.
            batches: its batches.
            runner: runs its steps.
            masks: changes masks of the runner's state, which must be a `State` then.

        Raises:
            TrainingError: the checkpoint can't be used (OP905).
        """
        self.job, self.settings = job, job.settings
        self.batches, self.runner, self.masks = batches, runner, masks
        self.at = Checkpoint(job.fingerprint, value=job.start)
        if job.resume and job.checkpoint is not None and job.checkpoint.exists():
            self.at = read(job.checkpoint, job.fingerprint)
            skipped = self.at.skipped + sum(epoch.skipped for epoch in self.at.history)
            runner.load_state(self.at.state, self.at.step - skipped)
        self.at.epochs = self.at.epochs or self._fitting()
        self.total = batches.per_epoch * self.at.epochs
        self.warm_up = round(job.settings.warm_up * self.total)

    def _fitting(self) -> int:
        """Return the number of epochs that fit into the time: a few steps are run and undone, and a model judged."""
        settings, judge = self.settings, self.job.judge
        if settings.minutes is None:
            return settings.epochs
        start, used, number = dict(self.runner.state), list[float](), 0
        began = perf_counter()
        for group in self.batches.epoch(0):
            self.runner.step(group, 0.0)
            used.append(perf_counter() - began)
            began, number = perf_counter(), number + 1
            if number == _TIMED:
                break
        self.runner.load_state(start, 0)
        if judge is not None:
            judge(self.job.model)
        judging = perf_counter() - began
        epoch = self.batches.per_epoch * min(used) + judging
        return int(min(max(60 * settings.minutes / epoch, 1), settings.epochs))

    def all(self) -> Trained:
        """Run the remaining epochs, until the loss stays infinite or, with patience, the model stops improving."""
        settings, failure = self.settings, None
        keep_best = self.job.judge is not None and not settings.sparsifies
        began, limit = perf_counter(), _OVERRUN * 60 * (settings.minutes or inf)
        for number in range(self.at.step // self.batches.per_epoch, self.at.epochs):
            if perf_counter() - began > limit:
                log.warning("the time is up: %d of %d epochs were run", len(self.at.history), self.at.epochs)
                break
            idle = len(self.at.history) - self.at.best_epoch
            if keep_best and settings.patience and idle >= settings.patience:
                break
            try:
                self._epoch(number)
            except DivergenceError as error:
                failure = error
                break
            except KeyboardInterrupt:
                if not (self.job.stoppable and keep_best):
                    raise
                log.warning("interrupted: the best model of %d epochs is kept", len(self.at.history))
                break
        last = {} if failure else self.runner.weights
        model = with_weights(self.job.model, self.at.best if keep_best else last)
        epoch = self.at.best_epoch if keep_best else 0 if failure else len(self.at.history)
        return Trained(model, tuple(self.at.history), epoch, self.at.epochs, failure=failure)

    def _epoch(self, number: int) -> None:
        done = self.at.step - number * self.batches.per_epoch
        started = perf_counter() - self.at.seconds
        used = 0.0
        for group in self.batches.epoch(number, done):
            used = self.settings.peak * rate(self.settings.schedule, self.at.step, self.total, self.warm_up)
            losses = self.runner.step(group, used)
            self.at.step += 1
            if self.masks is not None:
                self.masks.after(self.at.step, self.total)
            skipped = losses.pop(SKIPPED, 0.0) > 0 or not isfinite(losses["loss"])
            self.at.in_a_row = self.at.in_a_row + 1 if skipped else 0
            if self.at.in_a_row >= min(_IN_A_ROW, self.batches.per_epoch):
                cause = f"the loss or its gradient isn't finite since step {self.at.step - self.at.in_a_row + 1}"
                hint = f"lower the learning rate (`rate`, now {self.settings.peak:g}), or clip gradients (`clip`)"
                raise DivergenceError("OP907", f"{cause}, in epoch {number + 1}", hint=hint)
            self.at.skipped += skipped
            if not skipped:
                self.at.losses = {name: self.at.losses.get(name, 0.0) + loss for name, loss in losses.items()}
            best = "" if self.at.value is None else f", best {abs(self.at.value):.4g}"
            detail = f"train: epoch {number + 1}, loss {losses['loss']:.4f}{best}, rate {used:.2g}"
            self.job.progress(detail, self.at.step, self.total)
            if self.job.every and self.at.step % self.job.every == 0 and self.at.step % self.batches.per_epoch:
                self.at.seconds = perf_counter() - started
                self._keep()
        counted = self.batches.per_epoch - self.at.skipped
        means = {name: loss / counted for name, loss in self.at.losses.items()}
        seconds = perf_counter() - started
        value = None if self.job.judge is None else self.job.judge(with_weights(self.job.model, self.runner.weights))
        passed = Epoch(number + 1, self.at.step, used, means.pop("loss"), means, value, seconds, self.at.skipped)
        self.at.history.append(passed)
        self.at.losses, self.at.seconds, self.at.skipped = {}, 0.0, 0
        if value is not None and (self.at.value is None or value > self.at.value):
            self.at.value, self.at.best, self.at.best_epoch = value, self.runner.weights, number + 1
        self._keep()

    def _keep(self) -> None:
        if self.job.checkpoint is not None:
            self.at.state = self.runner.state
            write(self.at, self.job.checkpoint)
