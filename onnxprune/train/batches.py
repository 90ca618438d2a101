"""Batches for training steps: shuffled, full, augmented, and with the teacher's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.autodiff.prepare import replaced_types, single_precision
from onnxprune.data import IGNORED, Batch
from onnxprune.errors import DataError, TrainingError
from onnxprune.model.graph import extract
from onnxprune.model.session import run, session
from onnxprune.model.states import cut_outputs, fitted, of_original, state_inputs
from onnxprune.shapes.runnable import runnable_front
from onnxprune.train.augment import augment
from onnxprune.train.backend import Job
from onnxprune.train.objective import Objective, objective

_MEASURED = 256  # samples over which the scale of the teacher's tensors is measured
_TINY = 1e-10  # rounding of a variance, relative to the square of the mean

Arrays = dict[str, NDArray[Any]]


def objective_of(job: Job, model: ModelProto) -> Objective:
    """Return the objective of a job whose model may have been prepared for training.

    Where ONNX Runtime refuses some nodes, what is computed in front of them is trained.

    Raises:
        DataError: there are no data.
        TrainingError: labels or a teacher are missing, or there is nothing to train (OP904).
    """
    batch = next(job.data.batches(min(job.settings.batch, len(job.data))))
    front = runnable_front(model)
    part = model if front is None else extract(model, front.outputs)
    read = {entry.name for entry in part.graph.input}
    arrays = fitted(state_inputs(job.model), batch.inputs, batch.count)
    shapes = {name: array.shape for name, array in arrays.items() if name in read}
    return objective(
        part, job.settings, labeled=job.labeled, teacher=job.teacher is not None, inputs=shapes, task=job.task
    )


class TrainingBatches:
    """The batches of a training, reproducible by the seed."""

    def __init__(
        self,
        job: Job,
        goal: Objective,
    ) -> None:
        """Read a first batch, open the teacher if there is one, and measure the variance of what is compared with it.

        Args:
            job: the data, the settings, and the teacher.
            goal: the objective.

        Raises:
            DataError: there are no data.
            TrainingError: there are too few for a step (OP906), or the teacher lacks a tensor (OP904).
        """
        data, settings, teacher = job.data, job.settings, job.teacher
        self._data, self._settings, self._kept = data, settings, job.kept
        self._replaced = [tensor_dtype_to_np_dtype(dtype) for dtype in replaced_types(job.model)]
        self._goal, self._labeled = goal, goal.labeled
        self._states, self._teacher = state_inputs(job.model), None
        if teacher is not None and (tensors := goal.teacher_tensors(teacher)):
            self._names = tensors
            _check_tensors(teacher, tensors.values())
            part = single_precision(extract(teacher, tensors.values()), replaced_types(teacher))
            self._teacher = session(part, providers=job.providers, threads=job.threads)
        first = next(data.batches(min(settings.batch, len(data))))
        self.size = first.count
        self.per_epoch = len(data) // self.size // settings.accumulate
        if not self.per_epoch:
            cause = f"{len(data)} samples don't make {settings.accumulate} batches of {self.size}"
            raise TrainingError("OP906", cause, hint="lower `batch` or `accumulate`")
        self.example = self._complete(first, first.inputs)
        self.scales = self._variances([term.name for term in goal.terms if term.loss == "nmse"])

    def epoch(self, number: int, skip: int = 0) -> Iterator[list[Arrays]]:
        """Yield an epoch's steps, each a list of the batches that accumulate.

        Samples are shuffled differently in each epoch; those that don't fill a batch are dropped.

        Args:
            number: number of the epoch, from 0.
            skip: number of steps to skip at the beginning.
        """
        accumulate, seed = self._settings.accumulate, self._settings.seed
        order = np.random.default_rng((seed, number)).permutation(len(self._data))
        start = skip * accumulate * self.size
        stop = self.per_epoch * accumulate * self.size
        group: list[Arrays] = []
        for i, batch in enumerate(self._data.subset(order[start:stop]).batches(self.size)):
            if batch.count < self.size:
                continue
            rng = np.random.default_rng((seed, number, skip * accumulate + i, 1))
            group.append(self._complete(batch, augment(self._settings.augmentation, batch.inputs, rng)))
            if len(group) == accumulate:
                yield group
                group = []

    def _complete(self, batch: Batch, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        singles = {n: a.astype(np.float32) if a.dtype in self._replaced else a for n, a in inputs.items()}
        arrays = fitted(self._states, singles, batch.count)
        if self._labeled and batch.labels is not None:
            arrays["labels"] = self._checked(batch.labels)
        if self._teacher is not None:
            wanted = {i.name for i in self._teacher.get_inputs()}
            taught = fitted(of_original(self._states), singles, batch.count)
            outputs = run(self._teacher, {n: a for n, a in taught.items() if n in wanted})
            arrays |= {name: self._remaining(source, outputs[source]) for name, source in self._names.items()}
        return arrays

    def _checked(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels as the losses take them.

        Raises:
            TrainingError: they are no class indices, and a loss takes those (OP904).
            DataError: they are no probabilities, and a loss takes those (OP708).
        """
        losses = {term.loss for term in self._goal.terms if not term.taught}
        if "cross-entropy" in losses:
            if labels.dtype.kind not in "biu":
                hint = "use the loss mse or huber for numbers, bce for decisions"
                cause = f"cross-entropy takes class indices, and the labels are {labels.dtype}"
                raise TrainingError("OP904", cause, hint=hint)
            return labels.astype(np.int64)
        if labels.dtype.kind not in "biuf":
            raise TrainingError("OP904", "labels of text can't be trained on", hint="drop them with labels=none")
        if "bce" in losses and (wrong := ~((labels == IGNORED) | ((labels >= 0) & (labels <= 1)))).any():
            cause = f"the label {labels[wrong][0]:g} is no probability, which the loss bce takes"
            raise DataError("OP708", cause, hint="set `task` to regression if labels are numbers")
        return labels.astype(np.float32)

    def _remaining(self, tensor: str, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return the part of a teacher's tensor that the pruned model still has."""
        left = cut_outputs(self._states, {tensor: array})[tensor]
        return np.asarray(left if self._kept is None else self._kept.cut(tensor, left), np.float32)

    def _variances(self, names: Sequence[str]) -> dict[str, float]:
        """Return the variance of the teacher's tensors for some losses, over a random part of the data."""
        if not names or self._teacher is None:
            return {}
        moments = {name: _Moments() for name in names}
        order = np.random.default_rng(self._settings.seed).permutation(len(self._data))
        part = np.sort(order[: max(_MEASURED // self.size, 1) * self.size])
        for batch in self._data.subset(part).batches(self.size):
            arrays = self._complete(batch, batch.inputs) if batch.count == self.size else {}
            for name in names if arrays else ():
                moments[name].add(arrays[f"teacher:{name}"])
        return {name: found.scale for name, found in moments.items()}


@dataclass(slots=True)
class _Moments:
    """Running moments of arrays.

    Attributes:
        count: the number of elements.
        mean: their mean.
        squares: the sum of their squared deviations from it.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, array: NDArray[Any]) -> None:
        """Add an array's finite elements.

        T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
        (1979).
        """
        values = array[np.isfinite(array)].astype(np.float64)
        if not values.size:
            return
        mean, total = float(values.mean()), self.count + values.size
        self.squares += float(np.square(values - mean).sum())
        self.squares += (mean - self.mean) ** 2 * self.count * values.size / total
        self.mean += (mean - self.mean) * values.size / total
        self.count = total

    @property
    def scale(self) -> float:
        """The variance; the mean square for values that don't vary, and 1 if all are zero or none are finite."""
        variance = self.squares / max(self.count, 1)
        found = variance if variance > _TINY * self.mean**2 else self.mean**2
        return found if found > 0 else 1.0


def _check_tensors(teacher: ModelProto, names: Iterable[str]) -> None:
    """Raise TrainingError (OP904) if the teacher lacks a tensor."""
    made = {name for node in teacher.graph.node for name in node.output} | {i.name for i in teacher.graph.input}
    for name in names:
        if name not in made:
            raise TrainingError("OP904", "the teacher has no tensor of this name", where=f'"{name}"')
