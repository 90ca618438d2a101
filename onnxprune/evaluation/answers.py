"""Doubts about data: what a network that ignores its input would reach, and labels that look shifted."""

from __future__ import annotations

from collections import Counter

import numpy as np

from onnxprune.data.batch import IGNORED
from onnxprune.evaluation.classes import Ids
from onnxprune.evaluation.tasks import CLASSES, SIGNED
from onnxprune.evaluation.view import BatchView
from onnxprune.settings.evaluation import METRICS

_SHIFT = 0.2  # gain of accuracy with another label_offset that can't be a coincidence
_TABLE = 2**20  # ids below this are counted in a table


class Answers:
    """Counts of labels and of the original's answers.

    A constant answer is right as often as the most frequent label is. Of several decisions, each has an answer of its
    own.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self._labels: list[Counter[int]] = []
        self._original: list[Counter[int]] = []
        self._shifted = dict.fromkeys((-1, 0, 1), 0)
        self._counted = 0

    def add(self, view: BatchView) -> None:
        """Count a batch."""
        each = view.task.name in SIGNED
        if view.original is not None and view.original.classes is not None:
            _add(self._original, view.original.classes.predicted, each)
        if view.flat is None or view.classes is None:
            return
        _add(self._labels, view.flat, each)
        if view.task.name in CLASSES:
            counted = view.flat != IGNORED
            self._counted += int(counted.sum())
            for offset in self._shifted:
                self._shifted[offset] += int((counted & (view.classes.predicted == view.flat + offset)).sum())

    def constant(self, metric: str) -> float | None:
        """Return the best value of a metric that a constant answer has; None if that isn't known."""
        counts = {"top1": self._labels, "accuracy": self._labels, "agreement": self._original}.get(metric)
        if counts is None:
            return METRICS[metric].constant if metric in METRICS else None
        total = sum(count.total() for count in counts)
        return sum(max(count.values(), default=0) for count in counts) / total if total else None

    def shift(self) -> str | None:
        """Return a note if labels look shifted."""
        best = max(self._shifted, key=self._shifted.__getitem__)
        if not self._counted or self._shifted[best] - self._shifted[0] <= _SHIFT * self._counted:
            return None
        share = self._shifted[best] / self._counted
        return f"labels look shifted: adding {best:+d} to label_offset would make {share:.1%} of them right"


def _add(counts: list[Counter[int]], ids: Ids, each: bool) -> None:
    """Count ids [n, positions]: those of each position by themselves, or of all together."""
    columns = list(ids.T) if each else [ids.ravel()]
    counts.extend(Counter() for _ in columns[len(counts) :])
    for count, column in zip(counts, columns, strict=True):
        known = column[column != IGNORED]
        if not known.size:
            continue
        if known.min() >= 0 and known.max() < _TABLE:
            table = np.bincount(known)
            values = np.flatnonzero(table)
            found = table[values]
        else:
            values, found = np.unique(known, return_counts=True)
        count.update(dict(zip(values.tolist(), found.tolist(), strict=True)))
