"""How far the predictions of a changed classifier are from the original's, on inputs that nothing was fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import DataError
from onnxprune.evaluation.classes import Classes, classes_of, is_distribution
from onnxprune.evaluation.tasks import task_of
from onnxprune.model.stream import Batches, Stream
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.shapes.runnable import Cut
from onnxprune.trace.outputs import unsquashed

Floats = NDArray[np.float64]

_SCALES, _STEPS = (0.1, 10.0), 24  # 1 / temperature, and steps of the search, each of which keeps 2/3 of the range
_TINY = 1e-12


class PredictionError:
    """Divergence of a changed classifier's class distribution from the original's, in nats; 0 for the original itself.

    The changed network's scores are divided by the temperature that suits them best (C. Guo et al., "On calibration of
    modern neural networks", ICML 2017): ways to shrink a network differ in how they scale scores, which changes no
    prediction. The squared error of outputs (`OutputError`) counts it, and can't compare such ways. For a MobileNetV2
    at half its MACs, on 50 images held back: with channels alone, 192 and channels, 160 and channels, it is
    0.83, 0.49, 0.90, and this divergence 2.9, 0.73, 0.51; the share of equal predictions is 28, 62, 78 %.
    """

    measures = "divergence of the predictions, in nats,"

    def __init__(self, model: ModelProto, batches: Batches, output: str) -> None:
        """Run the original.

        Args:
            model: the original.
            batches: returns the inputs.
            output: its output of class scores.

        Raises:
            ModelError: ONNX Runtime can't run it on the inputs.
        """
        (self._tensor,) = unsquashed(model, [output])
        self._stream = Stream(model, batches)
        self._reference = [_log_softmax(scores) for scores in self._scores(model)]

    def __call__(self, model: ModelProto) -> float:
        """Return the divergence of a changed network; infinite if a score isn't finite."""
        return float(np.mean(self.parts(model)))

    def parts(self, model: ModelProto) -> Floats:
        """Return the divergence for each prediction, whose mean is that of a changed network."""
        found = list(self._scores(model))
        if not all(np.isfinite(scores).all() for scores in found):
            return np.array([np.inf])
        low, high = np.log(_SCALES)
        for _ in range(_STEPS):  # the divergence is convex in the scale
            third = (high - low) / 3
            if self._divergence(found, low + third).mean() < self._divergence(found, high - third).mean():
                high -= third
            else:
                low += third
        return self._divergence(found, (low + high) / 2)

    def _divergence(self, found: list[Floats], scale: float) -> Floats:
        rows = (
            (np.exp(expected) * (expected - _log_softmax(scores * np.exp(scale)))).sum(axis=1).ravel()
            for expected, scores in zip(self._reference, found, strict=True)
        )
        return np.concatenate(list(rows))

    def _scores(self, model: ModelProto) -> list[Floats]:
        """Return the logits of each batch, [n, classes, positions]."""
        found = []
        for batch in self._stream.tensors([self._tensor], of=model):
            classes = classes_of(batch[self._tensor], None)
            assert isinstance(classes, Classes) and classes.scores is not None
            scores = classes.scores.astype(np.float64)
            found.append(np.log(np.maximum(scores, _TINY)) if is_distribution(scores) else scores)
        return found


def judge_of(
    model: ModelProto, batches: Batches, cut: Cut | None = None, data: Any = None
) -> PredictionError | OutputError:
    """Return what judges changes of a network that aren't small: by predictions if it is a classifier, else by outputs.

    Args:
        model: the original.
        batches: returns inputs to judge on.
        cut: the part that can be run, if not all of it.
        data: the data; `reading` says what outputs mean, if it has this attribute.

    Raises:
        ModelError: ONNX Runtime can't run it on the inputs.
        UsageError: there are no inputs, or no output varies with them (OP604).
    """
    output = None if cut is not None else _class_scores(model, batches, data)
    return OutputError(model, batches, cut) if output is None else PredictionError(model, batches, output)


def _class_scores(model: ModelProto, batches: Batches, data: Any) -> str | None:
    """Return the output that holds a score for each class, if the model is a classifier."""
    names = [output.name for output in model.graph.output]
    first = next(iter(Stream(model, batches).tensors(names)), {})
    if not first or not all(isinstance(value, np.ndarray) and value.ndim for value in first.values()):
        return None
    try:
        task = task_of(model, first, None, data)
    except DataError:  # the settings of the task fit the data in another way
        return None
    classes = None if task.output is None else classes_of(first[task.output], None)
    scored = task.name == "classification" and classes is not None and classes.scores is not None
    return task.output if scored else None


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
