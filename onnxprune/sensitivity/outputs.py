"""Errors of a changed network's outputs against the original's, on inputs that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.values import Ids
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.evaluation import Estimate, Evaluation, Score, evaluate
from onnxprune.model.stream import Batches, Stream
from onnxprune.settings.evaluation import higher_is_better
from onnxprune.shapes.runnable import Cut
from onnxprune.trace.outputs import followed, unsquashed

# Elements kept of an output per batch; of larger outputs, a random sample of this size.
_ELEMENTS = 2**16


@dataclass(slots=True)
class _Reference:
    """The original's values of one tensor by batch, and the sums of squares of their deviation from the mean of all."""

    shapes: list[tuple[int, ...]]
    values: list[NDArray[Any]]
    spreads: list[float]


class OutputError:
    """Mean squared error of outputs relative to their variance, averaged over outputs; 0 for the original itself.

    It is quadratic in small changes, so errors of independent changes add up. Only a part of large outputs is compared,
    as those of the original are kept. Outputs behind a selection are judged by the tensors in front of it
    (`onnxprune.trace.outputs`); what is left of value-dependent size counts for the batches where its size is the same.
    """

    measures = "squared error of the outputs, relative to their variance,"

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
        tensors = cut.outputs if cut and cut.outputs else unsquashed(model, followed(model).tensors)
        self._stream = Stream(model, batches, unmade=cut.unmade if cut else (), keep=tensors)
        self._drawn: dict[int, Ids] = {}
        shapes: dict[str, list[tuple[int, ...]]] = {}
        values: dict[str, list[NDArray[Any]]] = {}
        for batch in self._stream.tensors(tensors):
            for name, value in batch.items():
                if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                    shapes.setdefault(name, []).append(value.shape)
                    values.setdefault(name, []).append(self._part(value))
        references = {name: _Reference(shapes[name], own, _spreads(own)) for name, own in values.items()}
        self._references = {name: r for name, r in references.items() if sum(r.spreads) > 0}
        if not self._references:
            raise UsageError("OP604", "no output varies with the inputs, so no change of it can be measured")

    def __call__(self, model: ModelProto, since: int = 0) -> float:
        """Return the error of a changed network; infinite if an output isn't finite.

        Args:
            model: a network that equals the original before a node.
            since: that node's position in the original. It must not decrease from call to call.
        """
        return float(np.mean(self.parts(model, since)))

    def parts(self, model: ModelProto, since: int = 0) -> NDArray[np.float64]:
        """Return what each batch adds to the error of a changed network, whose mean it is. See `__call__`."""
        self.advance(since)
        squares: dict[str, list[float]] = {name: [] for name in self._references}
        spreads = dict.fromkeys(self._references, 0.0)
        for i, batch in enumerate(self._stream.tensors(self._references, of=model)):
            for name, value in batch.items():
                reference, square = self._references[name], 0.0
                if value.shape == reference.shapes[i]:  # otherwise something else was selected
                    difference = self._part(value).astype(np.float64) - reference.values[i]
                    square = float(np.square(difference).sum())
                    spreads[name] += reference.spreads[i]
                squares[name].append(square)
        errors = [len(own) * np.array(own) / spreads[name] for name, own in squares.items() if spreads[name]]
        return np.mean(errors, axis=0) if errors and np.isfinite(errors).all() else np.array([np.inf])

    def advance(self, since: int) -> None:
        """Hold the original's tensors in front of a node; its position must not decrease from call to call."""
        self._stream.advance(since)

    def _part(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the elements of an output that are compared, the same ones for all outputs of its size."""
        if value.size <= _ELEMENTS:
            return value
        if value.size not in self._drawn:
            self._drawn[value.size] = np.random.default_rng(value.size).integers(value.size, size=_ELEMENTS)
        return value.ravel()[self._drawn[value.size]]


def _spreads(values: list[NDArray[Any]]) -> list[float]:
    """Return each batch's sum of squares about the mean of all; zeros if these aren't finite."""
    flat = [v.astype(np.float64).ravel() for v in values]
    mean = sum(float(v.sum()) for v in flat) / max(sum(v.size for v in flat), 1)
    spreads = [float(np.square(v - mean).sum()) for v in flat]
    return spreads if np.isfinite(spreads).all() else [0.0] * len(flat)


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

    def advance(self, since: int) -> None:
        """Do nothing: every network is run from its inputs."""


def loss(evaluation: Evaluation, metric: str) -> float:
    """Return the loss of a metric against the original, see `drop`."""
    return drop(evaluation, metric).value


def drop(evaluation: Evaluation, metric: str) -> Estimate:
    """Return the loss of a metric against the original; a metric that compares with the original is a loss itself.

    Of several outputs, the one that loses most counts.

    Raises:
        DataError: the metric wasn't measured (OP711).
    """
    evaluation[metric]
    return drop_of(evaluation.scores, metric)


def drop_of(scores: Iterable[Score], metric: str) -> Estimate:
    """Return the loss of a metric among scores, see `drop`."""
    return max((_drop(score) for score in scores if score.metric == metric), key=lambda found: found.value)


def _drop(score: Score) -> Estimate:
    higher = higher_is_better(score.metric)
    if score.difference is None:
        found, start = score.model, 1.0 if higher else 0.0
    else:
        found, start = score.difference, 0.0
    if higher:
        return Estimate(start - found.value, start - found.high, start - found.low)
    return found
