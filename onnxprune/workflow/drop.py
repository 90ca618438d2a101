"""The drop in accuracy of pruned models: the samples that it is measured on, and when it can be believed.

Samples are divided into three parts. On the first, channels are chosen and layers repaired; on the second, models are
compared, and one is chosen; the third judges that one, once. Being the best of several on the second part is a matter
of luck, too, so its drop there is too good to be true. All models are compared on the same samples, so that
luck with these favors none.

Without labels, the drop is bounded by the disagreement with the original: every sample that becomes wrong is predicted
differently. For outputs that aren't class scores, it is the squared error relative to the variance, of the output that
loses most. With labels, what becomes wrong counts as well: at most half of it may be made up for by samples that become
right, which happens by chance where many labels are wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter

import numpy as np
from onnx import ModelProto

from onnxprune.data import Data, Dataset
from onnxprune.data.batch import Source
from onnxprune.data.ragged import RaggedSource
from onnxprune.errors import DataError
from onnxprune.evaluation import Evaluation, Score, evaluate, paired_proportions
from onnxprune.evaluation.fidelity import perhaps_trained_on
from onnxprune.evaluation.runner import Outputs
from onnxprune.evaluation.score import above_constant
from onnxprune.progress import Progress, within
from onnxprune.sensitivity import drop, drop_of
from onnxprune.settings.evaluation import METRICS

log = logging.getLogger(__name__)

_JUDGED = 2000  # largest number of samples to compare trials on, and to judge the result on
_JUDGED_OF_TRAINING = 0.2  # largest share of the samples for each of these, where the others are trained on
_MADE_UP = 2.0  # largest number of samples that become wrong, relative to the drop in their number


@contextmanager
def told_before() -> Iterator[None]:
    """Leave out what `DropMeasure.check` warns of: it was said of the samples that those given here are part of."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the samples.

    Attributes:
        calibration: to choose channels and repair layers with.
        training: to train on: those of calibration, and what is left.
        validation: to compare epochs of training on; None without training.
        choosing: to choose between models.
        judging: to judge the model that is chosen.
        mixed: whether the samples of ``choosing`` come in random order, so that the first ones tell of the rest.
        known: those of ``choosing`` and ``training``, to compare models on that nothing was fitted for; None for
            ``choosing`` alone.
    """

    calibration: Dataset
    training: Dataset
    choosing: Dataset
    judging: Dataset
    mixed: bool = True
    known: Dataset | None = None
    validation: Dataset | None = None

    def to_choose_by(self, *, fitted: bool) -> Dataset:
        """Return the samples to compare a model on, given whether its weights were fitted to some."""
        return self.choosing if fitted or self.known is None else self.known


def divide(data: Dataset, limit: int, seed: int, *, training: bool, validated: float = 0.0) -> Parts:
    """Divide samples at random.

    Args:
        data: the samples.
        limit: the number for calibration, at most half of all.
        seed: random seed.
        training: whether some are trained on, so that fewer are left to choose and judge by.
        validated: the share of those that is held back from both calibration and training, to compare epochs on.

    Raises:
        DataError: there are too few (OP712).
    """
    order = np.random.default_rng(seed).permutation(len(data))
    count = min(limit, len(order) // 2)
    each = (len(order) - count) // 2
    if training:
        each = min(each, int(_JUDGED_OF_TRAINING * len(order)))
    each = min(each, _JUDGED)
    if count < 1 or each < 1:
        raise DataError("OP712", "calibration, choice and judgment need samples of their own, so at least 3 in all")
    judged, chosen, rest = np.split(order, np.cumsum([each, each]))
    validating, work = np.split(rest, [max(round(validated * len(rest)), 1) if validated and len(rest) > 1 else 0])
    fitted, trained, judging = (data.subset(np.sort(own)) for own in (work[:count], work, judged))
    mixed = not (isinstance(data, Data) and (data.source.sequential or _is_by_length(data.source)))
    whole = np.concatenate([chosen, rest])[: max(len(chosen), _JUDGED)]
    choosing, known = (data.subset(own if mixed else np.sort(own)) for own in (chosen, whole))
    validation = data.subset(np.sort(validating)) if len(validating) else None
    return Parts(fitted, trained, choosing, judging, mixed, known, validation)


def _is_by_length(source: Source) -> bool:
    return isinstance(source, RaggedSource) and not source.padded


class DropMeasure:
    """The drop of models against the original.

    Attributes:
        metric: the metric, once the data are checked.
        seconds: the time of running the original on a sample, likewise.
    """

    def __init__(self, original: ModelProto, parts: Parts, max_drop: float, seed: int) -> None:
        """Take the original, samples, and the drop allowed."""
        self.original, self.parts, self.max_drop, self.seed = original, parts, max_drop, seed
        self.metric, self.seconds = "", 0.0
        self._known = {True: Outputs(), False: Outputs()}  # the original's, on the samples for models fitted and not

    def check(self, progress: Progress) -> None:
        """Choose the metric, and check that the samples tell the original from a network that ignores its input.

        Raises:
            DataError: they don't (OP713), or there is no metric (OP711).
        """
        part, began = within(progress, "check the data"), perf_counter()
        found = evaluate(
            *(self.original, self.parts.choosing),
            against=self.original,
            resamples=1,
            seed=self.seed,
            known=self._known[True],
            progress=part,
        )
        self.seconds = (perf_counter() - began) / found.samples
        metric = found.judging
        if metric is None:
            cause = f"no drop in accuracy can be measured: {found.recognized}"
            raise DataError("OP711", cause, hint="set a `target` instead, and evaluate the result with another metric")
        self.metric = metric
        score, title = found[metric], METRICS[metric].title
        if found.doubts:
            hint = "check the scale and order of inputs (`preprocess`) and labels; the command `evaluate` shows more"
            raise DataError("OP713", "; ".join(found.doubts), where="data", hint=hint)
        if above_constant(score) <= self.max_drop:
            cause = f"a network that ignores its input would drop by {above_constant(score):.1%} in {title} only"
            hint = "allow a smaller drop than that, or give samples with more kinds of answers"
            raise DataError("OP713", cause, where="max_drop", hint=hint)
        if self.parts.choosing.labeled and METRICS[metric].needs == "original":
            log.warning(
                "the labels aren't used, and the drop is the difference from the original: %s", found.recognized
            )
        if (doubt := perhaps_trained_on(score)) is not None:
            log.warning("%s", doubt)
        judged, needed = len(self.parts.judging), samples_to_decide(self.max_drop)
        if score.share and needed is not None and judged < needed:
            log.warning(
                "%d samples that judge the result can't decide a drop of %.3g%%: about %d would, so %d in all",
                *(judged, 100 * self.max_drop, needed, ceil(needed * self._total() / judged)),
            )

    def _total(self) -> int:
        return len(self.parts.training) + len(self.parts.choosing) + len(self.parts.judging)

    def __call__(
        self, model: ModelProto, progress: Progress, *, whole: bool = False, fitted: bool = True
    ) -> Evaluation:
        """Evaluate a model on the samples that choose, all or until it is certain that it loses too much.

        Args:
            model: the model.
            progress: called with the samples.
            whole: whether to go on even then.
            fitted: whether its weights were fitted to samples; more are there to compare it on if not.
        """
        return evaluate(
            *(model, self.parts.to_choose_by(fitted=fitted)),
            against=self.original,
            metrics=[self.metric],
            resamples=200,
            seed=self.seed,
            known=self._known[fitted],
            until=self._hopeless if self.parts.mixed and not whole else None,
            progress=progress,
        )

    def judge(self, model: ModelProto, progress: Progress, *, examples: int = 0) -> Evaluation:
        """Evaluate a model by all metrics, on the samples that judge; keep some on which it and the original differ."""
        judging = self.parts.judging
        return evaluate(model, judging, against=self.original, seed=self.seed, examples=examples, progress=progress)

    def _hopeless(self, scores: Sequence[Score]) -> bool:
        return drop_of(scores, self.metric).low > self.max_drop

    def accepts(self, found: Evaluation) -> bool:
        """Whether a model is within the drop, and doesn't lose much more than it wins elsewhere."""
        return drop(found, self.metric).value <= self.max_drop and not self.flips(found)

    def flips(self, found: Evaluation) -> bool:
        """Whether more samples become wrong than the drop explains, beyond chance."""
        lost = found[self.metric].lost
        return lost is not None and lost.low > _MADE_UP * self.max_drop


def samples_to_decide(max_drop: float) -> int | None:
    """Return the number of samples at which the interval of a drop is as wide as the drop to either side.

    Twice as many samples as the drop become wrong, and half of that right. None if no number is enough.
    """
    if max_drop <= 0:
        return None
    low, high = 1, 2
    while _half_width(high, max_drop) > max_drop:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _half_width(middle, max_drop) <= max_drop else (middle, high)
    return high


def _half_width(samples: int, max_drop: float) -> float:
    found = paired_proportions(max_drop * samples, _MADE_UP * max_drop * samples, samples, 0.95)
    return (found.high - found.low) / 2
