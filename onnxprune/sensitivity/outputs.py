"""Errors of a changed network's outputs against the original's, on inputs that nothing was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.values import Ids
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.graph import GraphIndex
from onnxprune.model.stream import Batches, Stream
from onnxprune.settings.evaluation import higher_is_better
from onnxprune.shapes.runnable import Cut

# Operators at the end of a network that add no information to their input, and lose some where they saturate.
_SQUASHING = {"ArgMax", "Clip", "HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh", "TopK"}
# Elements kept of an output per batch; of larger outputs, a random sample of this size.
_ELEMENTS = 2**16
_MOVING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def informative_outputs(model: ModelProto) -> list[str]:
    """Return the tensors to compare: the outputs, or the inputs of a final Softmax or similar operator."""
    index = GraphIndex(model.graph)
    found = []
    for tensor in index.outputs:
        while (node := index.makers.get(index.source(tensor, _MOVING))) is not None and node.op_type in _SQUASHING:
            tensor = node.input[0]
        found.append(tensor)
    return list(dict.fromkeys(found))


@dataclass(slots=True)
class _Reference:
    """The original's values of one tensor, and the sum of squares of their deviation from their mean."""

    values: list[NDArray[Any]]
    spread: float


class OutputError:
    """Mean squared error of outputs relative to their variance, averaged over outputs; 0 for the original itself.

    It is quadratic in small changes, so errors of independent changes add up. Only a part of large outputs is compared,
    as those of the original are kept.
    """

    def __init__(self, model: ModelProto, batches: Batches, cut: Cut | None = None) -> None:
        """Run the original.

        Args:
            model: the original.
            batches: returns the inputs.
            cut: the part that can be run, if not all of it; its ends are compared.

        Raises:
            ModelError: ONNX Runtime can't run it on the inputs.
            UsageError: there are no inputs, or no output varies with them (OP604).
        """
        self._stream = Stream(model, batches, unmade=cut.unmade if cut else ())
        self._drawn: dict[int, Ids] = {}
        values: dict[str, list[NDArray[Any]]] = {}
        for batch in self._stream.tensors(cut.outputs if cut and cut.outputs else informative_outputs(model)):
            for name, value in batch.items():
                if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                    values.setdefault(name, []).append(self._part(value))
        references = {name: _Reference(own, _spread(own)) for name, own in values.items()}
        self._references = {name: r for name, r in references.items() if r.spread > 0}
        if not self._references:
            raise UsageError("OP604", "no output varies with the inputs, so no change of it can be measured")

    def __call__(self, model: ModelProto, since: int = 0) -> float:
        """Return the error of a changed network; infinite if an output isn't finite.

        Args:
            model: a network that equals the original before a node.
            since: that node's position in the original. It must not decrease from call to call.
        """
        self._stream.advance(since)
        squares = dict.fromkeys(self._references, 0.0)
        for i, batch in enumerate(self._stream.tensors(self._references, of=model)):
            for name, value in batch.items():
                original = self._references[name].values[i]
                squares[name] += float(np.square(self._part(value).astype(np.float64) - original).sum())
        errors = [squares[name] / reference.spread for name, reference in self._references.items()]
        return float(np.mean(errors)) if np.isfinite(errors).all() else float("inf")

    def _part(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the elements of an output that are compared, the same ones for all outputs of its size."""
        if value.size <= _ELEMENTS:
            return value
        if value.size not in self._drawn:
            self._drawn[value.size] = np.random.default_rng(value.size).integers(value.size, size=_ELEMENTS)
        return value.ravel()[self._drawn[value.size]]


def _spread(values: list[NDArray[Any]]) -> float:
    flat = [v.astype(np.float64).ravel() for v in values]
    mean = sum(float(v.sum()) for v in flat) / max(sum(v.size for v in flat), 1)
    total = sum(float(np.square(v - mean).sum()) for v in flat)
    return total if np.isfinite(total) else 0.0


class MetricLoss:
    """The loss of a metric against the original: a drop of accuracy, disagreement, or a distance."""

    def __init__(self, model: ModelProto, data: Dataset, metric: str) -> None:
        """Take the original, data and a metric.

        Args:
            model: the original.
            data: samples to measure on.
            metric: see `onnxprune.evaluation.METRICS`, or module:function.
        """
        self._model, self._data, self._metric = model, data, metric

    def __call__(self, model: ModelProto, since: int = 0) -> float:
        """Return the loss of a changed network.

        Raises:
            DataError: the metric can't be measured (OP711), or the data don't fit.
        """
        metrics = [self._metric]
        return loss(evaluate(model, self._data, against=self._model, metrics=metrics, resamples=1), self._metric)


def loss(evaluation: Evaluation, metric: str) -> float:
    """Return the loss of a metric against the original; a metric that compares with the original is a loss itself.

    Raises:
        DataError: the metric wasn't measured (OP711).
    """
    score, higher = evaluation[metric], higher_is_better(metric)
    if score.difference is not None:
        return -score.difference.value if higher else score.difference.value
    return 1 - score.model.value if higher else score.model.value
