"""A metric as the measure of sensitivity: how much of it is lost."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.evaluate import Evaluation, evaluate

# Where nothing is lost these are 1, and have no value of the original's to be compared with.
_LIKENESS = ("agreement", "cosine")


class MetricLoss:
    """The loss of a metric against the original: a drop of accuracy, disagreement, or a distance."""

    def __init__(self, model: ModelProto, data: Dataset, metric: str) -> None:
        """Take what is needed.

        Args:
            model: the original.
            data: samples to judge by.
            metric: see `onnxprune.evaluate.METRICS`, or module:function.
        """
        self._model, self._data, self._metric = model, data, metric

    def __call__(self, model: ModelProto, since: int = 0) -> float:
        """Return how much a changed network loses.

        Raises:
            DataError: the metric can't be measured (OP711), or the data don't fit.
        """
        metrics = [self._metric]
        return loss(evaluate(model, self._data, against=self._model, metrics=metrics, resamples=1), self._metric)


def loss(evaluation: Evaluation, metric: str) -> float:
    """Return how much of a metric was lost against the original; what is measured against it is a distance itself.

    Raises:
        DataError: the metric wasn't measured (OP711).
    """
    score = evaluation[metric]
    if score.difference is not None:
        return -score.difference.value
    return 1 - score.model.value if metric in _LIKENESS else score.model.value
