"""Scores of a model: values of metrics with intervals, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import notebook
from onnxprune.errors import DataError
from onnxprune.evaluation.disagreement import Example
from onnxprune.evaluation.intervals import Estimate, Floats, paired_proportions, percentile, wilson
from onnxprune.evaluation.metrics import Metric
from onnxprune.evaluation.view import BatchView
from onnxprune.settings.evaluation import TaskName, higher_is_better, judging, title_of


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's values.

    Attributes:
        metric: the metric's name.
        output: the output that it measures, if it is one of several.
        share: whether it is a fraction of samples or positions, from 0 to 1.
        model: the model's value.
        original: the original's value, for metrics of a single model.
        difference: model minus original, from the same samples.
        lost: of the samples that the original gets right, the share that the model gets wrong: the rate of negative
            flips (S. Yan et al., "Positive-congruent training", CVPR 2021).
        constant: the best value that a constant answer has on these data, if that is known.
    """

    metric: str
    output: str | None
    share: bool
    model: Estimate
    original: Estimate | None = None
    difference: Estimate | None = None
    lost: Estimate | None = None
    constant: float | None = None

    @property
    def key(self) -> str:
        """The metric's name, and of one of several outputs also the output's: "top1" or "mse:boxes"."""
        return self.metric if self.output is None else f"{self.metric}:{self.output}"

    @property
    def title(self) -> str:
        """The same in words, for tables: "top-1" or "mean squared error, boxes"."""
        title = title_of(self.metric)
        return title if self.output is None else f"{title}, {self.output}"


class Resampler:
    """Draws bootstrap weights for a stream of samples.

    In a bootstrap of many samples, the number of times that a sample is drawn is nearly Poisson distributed and
    independent of the others, so resampled sums need no stored samples. N. Chamandy, O. Muralidharan, A. Najmi and
    S. Naidu, Estimating uncertainty for massive data streams, Google technical report (2012).
    """

    def __init__(self, resamples: int, seed: int) -> None:
        """Set the number of resampled values and the seed."""
        self.resamples = resamples
        self._rng = np.random.default_rng(seed)

    def weights(self, samples: int) -> Floats:
        """Return the weights of the next samples, [samples, resamples]."""
        return self._rng.poisson(1.0, (samples, self.resamples)).astype(np.float64)


class Meter:
    """Running sums of a metric, of the model and, for metrics of a single model, of the original.

    Metrics that don't add up keep what they need of each sample until the end.
    """

    def __init__(self, metric: Metric) -> None:
        """Start with empty sums."""
        self.metric = metric
        self._mine, self._original = _Tally(), _Tally()
        self._kept: tuple[list[Any], list[Any]] = [], []
        self._gains = self._losses = 0.0
        self._binary = metric.share and higher_is_better(metric.name)

    def add(self, view: BatchView, weights: Floats) -> None:
        """Add a batch, with its bootstrap weights."""
        rows = self.metric.rows(view)
        reference = None if not self.metric.paired or view.original is None else self.metric.rows(view.original)
        if self.metric.keeps:
            self._kept[0].extend(rows)
            self._kept[1].extend([] if reference is None else reference)
        else:
            self._add(rows, reference, weights)

    def _add(self, rows: Floats, reference: Floats | None, weights: Floats) -> None:
        self._mine.add(rows, weights)
        self._binary = self._binary and rows.shape[1] == 2 and bool((rows[:, 1] <= 1).all())
        if reference is not None:
            self._original.add(reference, weights)
            change = (rows - reference)[:, 0]
            self._gains += float(np.maximum(change, 0).sum())
            self._losses += float(np.maximum(-change, 0).sum())

    def score(self, confidence: float, weights: NDArray[np.uint8] | None) -> Score:
        """Return the values with their intervals: Wilson's for fractions of samples, else the bootstrap's.

        Args:
            confidence: coverage of the intervals.
            weights: the bootstrap weights of all samples, for metrics that don't add up.
        """
        metric = self.metric
        mine, its = self._kept
        if metric.finish is not None and weights is not None:
            self._add(metric.finish(mine), metric.finish(its) if its else None, weights.astype(np.float64))
        if metric.statistic is not None and weights is not None:
            draws = weights.astype(np.float64)
            values = [(self._once(kept), metric.statistic(kept, draws)) for kept in self._kept if kept]
        else:
            assert metric.value is not None
            tallies = (self._mine, self._original)
            values = [(float(metric.value(t.sums)), metric.value(t.resampled)) for t in tallies if t.sums is not None]
        original = difference = lost = None
        model = self._estimate(self._mine, *values[0], confidence)
        if len(values) > 1:
            original = self._estimate(self._original, *values[1], confidence)
            if self._binary and self._mine.sums is not None:
                difference = paired_proportions(self._gains, self._losses, float(self._mine.sums[1]), confidence)
                assert self._original.sums is not None
                lost = wilson(self._losses, float(self._original.sums[0]), confidence)
            else:
                change = values[0][1] - values[1][1]
                difference = percentile(values[0][0] - values[1][0], change, confidence)
        return Score(metric.name, metric.output, metric.share, model, original, difference, lost)

    def _once(self, kept: list[Any]) -> float:
        assert self.metric.statistic is not None
        return float(self.metric.statistic(kept, np.ones((len(kept), 1)))[0])

    def _estimate(self, tally: _Tally, value: float, resampled: Floats, confidence: float) -> Estimate:
        if self._binary and tally.sums is not None:
            hits, trials = tally.sums
            return wilson(float(hits), float(trials), confidence)
        return percentile(value, resampled, confidence)


class _Tally:
    """Sums of rows, and of resampled rows."""

    def __init__(self) -> None:
        self.sums: Floats | None = None
        self.resampled: Floats = np.zeros(())

    def add(self, rows: Floats, weights: Floats) -> None:
        resampled = weights[: len(rows)].T @ rows
        if self.sums is None:
            self.sums, self.resampled = rows.sum(axis=0), resampled
        else:
            self.sums += rows.sum(axis=0)
            self.resampled += resampled


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's metrics on data.

    Attributes:
        samples: number of samples.
        scores: the metrics' values.
        not_finite: number of samples for which the model output NaN or infinity. They count as wrong, and are excluded
            from mean distances.
        confidence: coverage of the intervals.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
        providers: the requested execution providers.
        notes: remarks, such as on labels that look shifted.
        task: what the model is for; None if that isn't known.
        recognized: what the task was recognized by.
        doubts: those of the notes that speak against the data: labels that look shifted, or a metric in which the
            original, or the model if there is none, isn't better than a constant answer.
        examples: samples on which the model and the original disagree most, if any were to be kept.
    """

    samples: int
    scores: tuple[Score, ...]
    not_finite: int
    confidence: float
    resamples: int
    seed: int
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    task: TaskName | None = None
    recognized: str = ""
    doubts: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    def _repr_html_(self) -> str:
        """Return a table of the scores with their intervals."""
        rows = [[s.title, _figures(s.model, s.share), _figures(s.original, s.share), _change(s)] for s in self.scores]
        note = f"{self.samples:,} samples, intervals of {self.confidence:.0%}"
        return notebook.table("evaluation", ["", "model", "original", "change"], rows, "; ".join([note, *self.notes]))

    @property
    def judging(self) -> str | None:
        """The metric that a drop is measured in; None if none that was measured is fit for it."""
        return judging({score.metric for score in self.scores})

    def __getitem__(self, metric: str) -> Score:
        """Return the score of a metric (of the first output, if there are several).

        Raises:
            DataError: it wasn't measured (OP711).
        """
        for score in self.scores:
            if score.metric == metric:
                return score
        measured = ", ".join(score.metric for score in self.scores)
        raise DataError("OP711", f"{metric!r} wasn't measured", hint=f"measured: {measured}")


def _figures(found: Estimate | None, share: bool) -> str:
    if found is None:
        return ""
    if share:
        return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"


def _change(score: Score) -> str:
    found = score.difference
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} points" if score.share else f"{found.value:+.3g}"


def above_constant(score: Score) -> float:
    """Return how far the original, or the model if there is none, is above a constant answer; infinite if unknown."""
    if score.constant is None:
        return float("inf")
    gain = (score.original or score.model).value - score.constant
    return gain if higher_is_better(score.metric) else -gain
