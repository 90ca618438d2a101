"""Which models a search within a drop in accuracy tries, and in what order.

Smaller images come first: nothing is fitted for them, so a trial takes seconds. Then channels are removed, from the
original and from the networks with smaller images that were accepted, where sensitivities say that this may save more.
With other axes, each trial chooses the point along all of them at its cost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from statistics import fmean
from typing import Any

from onnxprune.errors import ModelError, PlanError
from onnxprune.model.stream import Batches
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.progress import Progress, silent, time_left, within
from onnxprune.resolution.resize import text
from onnxprune.sensitivity import Curve, predicted_error
from onnxprune.settings import LatencySettings, PlanSettings
from onnxprune.settings.planning import Limited, Target
from onnxprune.workflow.analysis import TracedModel, at_resolution
from onnxprune.workflow.planning import plan
from onnxprune.workflow.resolution import Sizes, alike
from onnxprune.workflow.trials import Trial, Trials

log = logging.getLogger(__name__)

TRIALS = 5  # most trials with channels removed
_PRECISION = 0.02  # of the cost found, as a share of the original's
_ERROR = 3.0  # predicted error of the outputs at the first trial, relative to the drop that is left
_SLACK = 0.05  # of a prediction, as a share of the original's cost: channels are tried where it may save more
_EDGE = 0.15  # the least distance of a trial from both ends, relative to the range that is left and to what is removed


@dataclass(frozen=True, slots=True)
class _Base:
    """A network to remove channels from.

    Attributes:
        at: the traced network.
        share: its cost, as a share of the original's.
        left: the drop that it leaves to channels.
        expected: the cost at which sensitivities expect that drop.
    """

    at: TracedModel
    share: float
    left: float
    expected: float


class Search:
    """A search for the smallest model within a drop."""

    def __init__(
        self,
        analysis: TracedModel,
        settings: PlanSettings,
        trials: Trials,
        max_drop: float,
        minimize: Limited,
        batches: Batches,
        latency: LatencySettings,
    ) -> None:
        """Prepare.

        Args:
            analysis: the traced original.
            settings: how to plan a trial, settled.
            trials: makes models, and measures their drops.
            max_drop: the largest drop.
            minimize: the cost to minimize.
            batches: returns inputs for calibration.
            latency: where latencies are measured.
        """
        self.analysis, self.settings, self.trials = analysis, settings, trials
        self.max_drop, self.minimize = max_drop, minimize
        self._known: dict[str, Any] = {"data": batches, "latency": latency}

    def resize(self, sizes: Sequence[Sizes], progress: Progress) -> None:
        """Find the smallest of some sizes of images, the largest first, that is accepted, by bisection."""
        left, low, high = list(sizes), -1, len(sizes)
        while high - low > 1:
            middle = (low + high) // 2
            what = " ".join(text(size) for size in dict.fromkeys(left[middle].values()))
            part = within(progress, f"trial {len(self.trials.done) + 1}, {what}")
            try:
                at = at_resolution(self.analysis, left[middle])
            except (ModelError, PlanError) as error:
                log.debug("%s: %s", what, error)
                del left[middle]
                high -= 1
                continue
            whole = replace(self.settings, target=None, ratio=0.0, allocation="uniform", criterion="l2")
            trial = self.trials.add(what, partial(self._planned, at, whole, None), part)
            low, high = (middle, high) if trial.accepted else (low, middle)

    def remove(self, curves: Sequence[Curve] | None, progress: Progress) -> None:
        """Remove channels, from every network where this is expected to save more than the best trial so far.

        Args:
            curves: the sensitivities of channels; None if channels aren't removed by these.
            progress: called with the phases of each trial.
        """
        last = len(self.trials.done) + TRIALS
        for base in sorted(self._bases(curves), key=lambda base: base.expected):
            best = self.trials.best
            if best is None or base.expected < best.share + _SLACK:
                self._narrow(base, curves, last, progress)

    def _bases(self, curves: Sequence[Curve] | None) -> Iterator[_Base]:
        """Yield the original, and the networks with smaller images that were accepted and have the same groups."""
        yield self._base(self.analysis, 1.0, self.max_drop, curves)
        for trial in self.trials.done:
            if trial.sizes and trial.accepted:
                at = at_resolution(self.analysis, trial.sizes)
                if alike(at, self.analysis):
                    yield self._base(at, trial.share, self.max_drop - max(trial.loss, 0.0), curves)

    def _base(self, at: TracedModel, share: float, left: float, curves: Sequence[Curve] | None) -> _Base:
        """Return a network with the cost at which the error of the outputs that curves predict fits the drop."""
        if curves is None or self.minimize == "latency":
            return _Base(at, share, left, share * (0.75 if self.minimize == "latency" else 0.5))
        low, high, by_group = 0.0, share, {curve.group: curve for curve in curves}
        for _ in range(5):
            middle = (low + high) / 2
            try:
                made = self._planned(at, replace(self._limited(middle), axes=("channels",)), curves, silent)
                over = predicted_error(at.graph, by_group, apply_plan(at.graph, made).removed) > _ERROR * max(
                    left, 1e-3
                )
            except PlanError as unreachable:
                if unreachable.code != "OP301":
                    raise
                over = True
            low, high = (middle, high) if over else (low, middle)
        return _Base(at, share, left, high if high < share else (low + high) / 2)

    def _narrow(self, base: _Base, curves: Sequence[Curve] | None, last: int, progress: Progress) -> None:
        """Try costs between the smallest that was kept and the largest that wasn't."""
        best, done, seconds = self.trials.best, self.trials.done, self.trials.seconds
        low, high = 0.0, base.share if best is None else min(base.share, best.share)
        share = base.expected if best is None else min(base.expected, high - _PRECISION)
        while high - low > _PRECISION and len(done) < last:
            left = time_left(fmean(seconds) * (last - len(done))) if seconds else ""
            image = " ".join(text(size) for size in dict.fromkeys(base.at.moves.resolution.values()))
            what = ", ".join(filter(None, (image, f"{self.minimize} at {share:.0%}")))
            part = within(progress, f"trial {len(done) + 1} of {last}, {what}{left}")
            planned = partial(self._planned, base.at, self._limited(share), curves)
            trial = self.trials.add(what, planned, part, share)
            low, high = (low, share) if trial.accepted else (share, high)
            share = self._next(base, trial, low, high)

    def _next(self, base: _Base, last: Trial, low: float, high: float) -> float:
        """Return the next cost: the drop grows with the square of what is removed, roughly."""
        removed = base.share - high if high < base.share else high - low
        middle, edge = (low + high) / 2, max(_EDGE * min(high - low, removed), _PRECISION / 2)
        own = last.loss - (self.max_drop - base.left)
        if not 0 < own < 1:
            return middle
        wanted = (base.share - last.share) * sqrt(max(base.left, 1e-4) / own)
        return min(max(base.share - wanted, low + edge), high - edge)

    def _limited(self, share: float) -> PlanSettings:
        return replace(self.settings, target=Target(self.minimize, share))

    def _planned(
        self, at: TracedModel, settings: PlanSettings, curves: Sequence[Curve] | None, progress: Progress
    ) -> PrunePlan:
        return plan(at, settings, sensitivity=curves, progress=progress, **self._known)
