"""Validation on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.session import Provider

_PREFERRED = ("kl", "miou", "top1", "mse")
_LOWER_IS_BETTER = ("kl", "mse")
_RESAMPLES = 200


class HoldOut:
    """Evaluates models on held-out data.

    Attributes:
        metric: the metric that decides. By default it is the distance from the teacher's distribution, which
            distinguishes models on few samples, or accuracy without a teacher.
        first: the evaluation of the model before training.
    """

    def __init__(
        self,
        model: ModelProto,
        data: Dataset,
        teacher: ModelProto | None,
        *,
        metric: str | None,
        batch: int,
        seed: int,
        providers: Sequence[Provider],
        threads: int | None,
    ) -> None:
        """Evaluate the model before training.

        Raises:
            DataError: the metric can't be measured (OP711).
        """
        self._evaluate = partial(
            evaluate,
            dataset=data,
            against=teacher,
            batch=batch,
            resamples=_RESAMPLES,
            seed=seed,
            providers=providers,
            threads=threads,
        )
        self.first = self.evaluate(model, None if metric is None else [metric])
        measured = [score.metric for score in self.first.scores]
        self.metric = metric or next((name for name in _PREFERRED if name in measured), measured[0])

    def evaluate(self, model: ModelProto, metrics: Sequence[str] | None = None) -> Evaluation:
        """Evaluate a model by some metrics, or by all that can be measured."""
        return self._evaluate(model, metrics=metrics)

    def __call__(self, model: ModelProto) -> float:
        """Return a model's value, where more is better."""
        return self.worth(self.evaluate(model, [self.metric]))

    def worth(self, evaluation: Evaluation) -> float:
        """Return the value of an evaluation, where more is better."""
        value = evaluation[self.metric].model.value
        return -value if self.metric in _LOWER_IS_BETTER else value


def hold_out_or_none(
    model: ModelProto, data: Dataset | None, teacher: ModelProto | None, *, metric: str | None, **settings: object
) -> HoldOut | None:
    """Return the validation, None if there are no data or no metric can be measured on them.

    Raises:
        DataError: the given metric can't be measured (OP711).
    """
    if data is None:
        return None
    try:
        return HoldOut(model, data, teacher, metric=metric, **settings)  # type: ignore[arg-type]
    except DataError as error:
        if error.code != "OP711" or metric is not None:
            raise
        return None
