"""Validation on held-out data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
from onnx import ModelProto, TensorProto

from onnxprune.autodiff.prepare import single_precision
from onnxprune.data import Dataset, split
from onnxprune.data.marks import fitted_marks, marks
from onnxprune.errors import DataError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.session import Provider
from onnxprune.settings.evaluation import higher_is_better, judging

log = logging.getLogger(__name__)

_PREFERRED = ("nmse", "kl", "miou", "auc")  # before others that judge: they distinguish models on few samples
_RESAMPLES = 200


class HoldOut:
    """Evaluates models on held-out data.

    Attributes:
        metric: the metric that decides. By default it is the distance from the teacher's distribution, which
            distinguishes models on few samples, or accuracy without a teacher; with several outputs, the mean of their
            squared errors relative to their variance.
        first: the evaluation of the model before training.
    """

    def __init__(
        self,
        model: ModelProto,
        data: Dataset,
        teacher: ModelProto | None,
        *,
        metric: str | None,
        output: str | None = None,
        batch: int,
        seed: int,
        providers: Sequence[Provider],
        threads: int | None,
    ) -> None:
        """Evaluate the model before training.

        Raises:
            DataError: the metric can't be measured (OP711).
        """
        self._output = output
        self._evaluate = partial(
            evaluate,
            dataset=data,
            against=teacher if teacher is None else _runnable(teacher),
            output=output if output in {value.name for value in model.graph.output} else None,
            batch=batch,
            resamples=_RESAMPLES,
            seed=seed,
            providers=providers,
            threads=threads,
        )
        self.first = self.evaluate(model, None if metric is None else [metric])
        measured = list(dict.fromkeys(score.metric for score in self.first.scores))
        self.metric = metric or (
            next((name for name in _PREFERRED if name in measured), None) or judging(measured) or measured[0]
        )

    def evaluate(self, model: ModelProto, metrics: Sequence[str] | None = None, *, examples: int = 0) -> Evaluation:
        """Evaluate a model by some metrics, or by all that can be measured; keep samples that change most."""
        return self._evaluate(_runnable(model), metrics=metrics, examples=examples)

    def __call__(self, model: ModelProto) -> float:
        """Return a model's value, where more is better."""
        return self.worth(self.evaluate(model, [self.metric]))

    def worth(self, evaluation: Evaluation) -> float:
        """Return the value of an evaluation, where more is better."""
        scores = [score for score in evaluation.scores if score.metric == self.metric]
        followed = [score for score in scores if score.output in (None, self._output)] or scores
        value = float(np.mean([score.model.value for score in followed]))
        return value if higher_is_better(self.metric) else -value


def _runnable(model: ModelProto) -> ModelProto:
    """Return a model without bfloat16, which few providers run; float32 has its range and more."""
    return single_precision(model, [TensorProto.BFLOAT16])


def split_off(model: ModelProto, data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide samples into those to train on and those to validate with, which a repair wasn't fitted to if possible.

    Raises:
        DataError: a part would be empty (OP712), or the data can't be read.
    """
    fitted = fitted_marks(model)
    if not len(fitted):
        return split(data, share, seed=seed)
    known = np.isin(marks(data), fitted)
    held = round(share * len(known))
    if (short := held - int((~known).sum())) > 0:
        log.warning("%d of the %d samples that are held out repaired the model, so it looks better there", short, held)
    return split(data, share, seed=seed, last=known)


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
