"""Running sums of a metric, resampled as they grow, and the score that comes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.evaluation.intervals import Estimate, Floats, paired_proportions, percentile, wilson
from onnxprune.evaluation.metrics import Metric
from onnxprune.evaluation.views import BatchView


@dataclass(frozen=True, slots=True)
class Score:
    """What was measured of a metric.

    Attributes:
        metric: its name.
        output: the output that it is about, if it is about one of several.
        share: whether it is a share of samples or positions, from 0 to 1.
        model: the model's value.
        original: the original's, where the metric is about one model.
        difference: model minus original, from the same samples.
    """

    metric: str
    output: str | None
    share: bool
    model: Estimate
    original: Estimate | None = None
    difference: Estimate | None = None


class Resampler:
    """Draws the weights of a bootstrap for samples as they come.

    How often a sample is drawn in a bootstrap of many samples is nearly Poisson distributed, independently of the
    others; so resampled sums can be kept without keeping samples. N. Chamandy, O. Muralidharan, A. Najmi and S. Naidu,
    Estimating uncertainty for massive data streams, Google technical report (2012).
    """

    def __init__(self, resamples: int, seed: int) -> None:
        """Take the number of resampled values and the seed."""
        self.resamples = resamples
        self._rng = np.random.default_rng(seed)

    def weights(self, samples: int) -> Floats:
        """Draw how often each of the next samples counts: [samples, resamples]."""
        return self._rng.poisson(1.0, (samples, self.resamples)).astype(np.float64)


class Meter:
    """A metric of a model, and of the original where it is about one model."""

    def __init__(self, metric: Metric) -> None:
        """Start at nothing."""
        self.metric = metric
        self._mine, self._original = _Tally(), _Tally()
        self._gains = self._losses = 0.0
        self._binary = metric.share

    def add(self, view: BatchView, weights: Floats) -> None:
        """Take a batch into account, with its weights for resampling."""
        rows = self.metric.rows(view)
        self._mine.add(rows, weights)
        self._binary = self._binary and rows.shape[1] == 2 and bool((rows[:, 1] <= 1).all())
        if self.metric.paired and view.original is not None:
            reference = self.metric.rows(view.original)
            self._original.add(reference, weights)
            change = (rows - reference)[:, 0]
            self._gains += float(np.maximum(change, 0).sum())
            self._losses += float(np.maximum(-change, 0).sum())

    def score(self, confidence: float) -> Score:
        """Give the values and their intervals: Wilson's for shares of samples, else by resampling."""
        metric, value = self.metric, self.metric.value
        mine = self._estimate(self._mine, confidence)
        original = difference = None
        if self._original.sums is not None:
            assert self._mine.sums is not None
            original = self._estimate(self._original, confidence)
            if self._binary:
                difference = paired_proportions(self._gains, self._losses, float(self._mine.sums[1]), confidence)
            else:
                change = value(self._mine.resampled) - value(self._original.resampled)
                difference = percentile(mine.value - original.value, change, confidence)
        return Score(metric.name, metric.output, metric.share, mine, original, difference)

    def _estimate(self, tally: _Tally, confidence: float) -> Estimate:
        assert tally.sums is not None
        if self._binary:
            hits, trials = tally.sums
            return wilson(float(hits), float(trials), confidence)
        value = self.metric.value
        return percentile(float(value(tally.sums)), value(tally.resampled), confidence)


class _Tally:
    """Sums of rows, and the same of resampled rows."""

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
