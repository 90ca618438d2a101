"""How far many variants of a model are from it: its outputs are computed once and kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from onnxprune.data.batch import Array, Batch, Dataset
from onnxprune.errors import DataError
from onnxprune.evaluation.classes import floats
from onnxprune.evaluation.metrics import nmse
from onnxprune.evaluation.runner import Runner
from onnxprune.evaluation.tasks import Task
from onnxprune.evaluation.view import BatchView
from onnxprune.runtime.provider import CPU
from onnxprune.trace.outputs import followed

_BATCH = 32
_ANY = Task(None, None, "distances need no task")


class Distance:
    """The squared error of models' outputs, relative to the variance of those of a reference.

    Outputs behind a selection are compared in front of it, see `onnxprune.trace.outputs`.

    Attributes:
        batches: the samples.
    """

    def __init__(self, reference: ModelProto, samples: Dataset, *, threads: int | None = None) -> None:
        """Run the reference.

        Args:
            reference: the model that others are compared with.
            samples: inputs, few enough for the outputs to fit into memory.
            threads: threads within an operator.

        Raises:
            ModelError: ONNX Runtime can't run it (OP122).
            DataError: there are no samples (OP702), or no output holds real numbers (OP711).
        """
        self._followed, self._threads = followed(reference), threads
        self.batches: tuple[Batch, ...] = tuple(samples.batches(_BATCH))
        if not self.batches:
            raise DataError("OP702", "the data have no samples")
        self._outputs = [*self._run(reference, self.batches)]
        if not self._outputs[0]:
            raise DataError("OP711", "no output has numbers that can be compared")

    def __call__(self, model: ModelProto, batches: int | None = None) -> float:
        """Return a model's error, of the output that loses most; infinite if outputs aren't finite.

        Args:
            model: the model; its tensors have the reference's names.
            batches: the number of batches to use; all by default.

        Raises:
            ModelError: ONNX Runtime can't run it (OP122).
        """
        sums: dict[str, Array] = {}
        for mine, its in zip(self._run(model, self.batches[:batches]), self._outputs, strict=False):
            for name in mine.keys() & its.keys():
                if mine[name].shape != its[name].shape:
                    continue
                if (np.isfinite(its[name]) & ~np.isfinite(mine[name])).any():
                    return float("inf")
                original = BatchView(_ANY, its, its, None)
                rows = nmse(name, named=False).rows(BatchView(_ANY, mine, mine, None, original=original))
                sums[name] = sums.get(name, 0) + rows.sum(axis=0)
        value = nmse("", named=False).value
        assert value is not None
        return max((float(value(total)) for total in sums.values()), default=float("inf"))

    def _run(self, model: ModelProto, batches: tuple[Batch, ...]) -> list[Mapping[str, Array]]:
        made = {name for node in model.graph.node for name in node.output}
        outputs = {value.name for value in model.graph.output}
        fronts = [name for name in self._followed.fronts if name in made and name not in outputs]
        runner = Runner(model, (CPU,), self._threads, tensors=fronts, sized=self._followed.ragged)
        behind = self._followed.replaced
        return [{n: a for n, a in floats(runner(batch)).items() if n not in behind} for batch in batches]
