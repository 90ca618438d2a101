"""Batches for training steps: shuffled, full, augmented, and with the teacher's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data import Batch, Dataset
from onnxprune.errors import TrainingError
from onnxprune.model.graph import extract
from onnxprune.model.session import Provider, run, session
from onnxprune.settings.training import TrainSettings
from onnxprune.train.augment import augment
from onnxprune.train.objective import Objective

Arrays = dict[str, NDArray[Any]]


class TrainingBatches:
    """The batches of a training, reproducible by the seed."""

    def __init__(
        self,
        data: Dataset,
        settings: TrainSettings,
        goal: Objective,
        teacher: ModelProto | None,
        *,
        providers: Sequence[Provider],
        threads: int | None,
    ) -> None:
        """Read a first batch, and open the teacher if there is one.

        Raises:
            DataError: there are no data.
            TrainingError: there are too few for a step (OP906).
        """
        self._data, self._settings = data, settings
        self._labeled = any(not taught for taught in goal.taught.values())
        self._teacher = None
        if teacher is not None and (tensors := goal.teacher_tensors(teacher)):
            self._names = tensors
            part = extract(teacher, tensors.values())
            self._teacher = session(part, providers=providers, threads=threads)
        first = next(data.batches(min(settings.batch, len(data))))
        self.size = first.count
        self.per_epoch = len(data) // self.size // settings.accumulate
        if not self.per_epoch:
            cause = f"{len(data)} samples don't make {settings.accumulate} batches of {self.size}"
            raise TrainingError("OP906", cause, hint="lower `batch` or `accumulate`")
        self.example = self._complete(first, first.inputs)

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
        arrays = dict(inputs)
        if self._labeled and batch.labels is not None:
            labels = batch.labels
            arrays["labels"] = labels.astype(np.int64 if labels.dtype.kind in "biu" else np.float32)
        if self._teacher is not None:
            wanted = {i.name for i in self._teacher.get_inputs()}
            outputs = run(self._teacher, {n: a for n, a in inputs.items() if n in wanted})
            arrays |= {name: np.asarray(outputs[source], np.float32) for name, source in self._names.items()}
        return arrays
