"""Pruning within an allowed drop in accuracy: bisection over the budget; each trial is repaired and evaluated.

The data are split into samples for calibration and others to measure the drop on. Without labels, the drop is bounded
by the disagreement with the original: every sample that becomes wrong is predicted differently. For outputs that aren't
class scores, it is the squared error relative to the variance, of the output that loses most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import DataError, PlanError, VerificationError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.planning.budget import with_names
from onnxprune.progress import Progress, silent, within
from onnxprune.recover import Method, Repair
from onnxprune.sensitivity import Curve, loss
from onnxprune.settings.evaluation import judging
from onnxprune.settings.planning import PlanSettings, Quantity, Target
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.inputs import batches_of
from onnxprune.workflow.planning import plan, sensitivities, settled
from onnxprune.workflow.pruning import Arrays, Pruned, prune, repair

log = logging.getLogger(__name__)

_JUDGED = 2000  # largest number of samples to measure the drop on
_PRECISION = 0.02  # of the budget found, as a share of the cost
_TRIALS = ceil(log2(1 / _PRECISION))  # each halves the range


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget of the search.

    Attributes:
        share: the limit, as a share of the original's cost.
        loss: the drop in accuracy; infinite if the constraints make the budget unreachable.
    """

    share: float
    loss: float


@dataclass(frozen=True, slots=True)
class MaxDropResult:
    """The smallest model within the drop allowed.

    Attributes:
        pruned: the model, repaired, with its proof and plan.
        repairs: the error of each layer before and after repair.
        evaluation: the model against the original, on samples not used for calibration.
        metric: the metric that the drop is measured in.
        trials: the budgets tried, in order.
    """

    pruned: Pruned
    repairs: tuple[Repair, ...]
    evaluation: Evaluation
    metric: str
    trials: tuple[Trial, ...]


def prune_within(
    analysis: TracedModel,
    settings: PlanSettings,
    data: Dataset,
    max_drop: float,
    *,
    quantity: Quantity = "macs",
    limit: int = 512,
    method: Method = "reconstruct",
    curves: Sequence[Curve] | None = None,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> MaxDropResult:
    """Return the smallest pruned and repaired model within a drop in accuracy.

    Args:
        analysis: the model.
        settings: how to plan; the budget is ignored.
        data: samples. With labels, the drop is in the task's first metric of `METRICS`; without, it is disagreement.
        max_drop: the largest drop, a share: 0.01 is one percentage point.
        quantity: the cost to minimize.
        limit: number of samples for calibration, at most half of them.
        method: how to repair.
        curves: sensitivities measured before, for the allocation "reconstruction".
        inputs: inputs for the proof, see `prune`.
        tolerance: tolerance of the proof, see `prune`.
        progress: called with the phases of each trial.

    Raises:
        VerificationError: even the smallest removal exceeds the drop (OP506), or a proof failed (OP501).
        PlanError: a setting is out of range.
        DataError: the data can't be read, are too few (OP712), or allow no measure of accuracy (OP711).
    """
    if not 0 <= max_drop < 1:
        raise PlanError("OP303", f"{max_drop} is out of range: must be at least 0 and below 1", where="max_drop")
    calibration, judged = _divide(data, limit, settings.seed)
    batches = batches_of(calibration, analysis.graph.proto)
    settings = replace(settings, constraints=with_names(settings.constraints, analysis.graph))
    settings = settled(replace(settings, ratio=None, target=Target(quantity, 1.0)), data=True)
    if settings.allocation == "reconstruction" and curves is None and not settings.remove_blocks:
        curves = sensitivities(analysis, settings, batches, progress=progress)
    best: MaxDropResult | None = None
    trials: list[Trial] = []
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        share, number = (low + high) / 2, len(trials) + 1
        part = within(progress, f"trial {number} of {_TRIALS}, {quantity} at {share:.0%}")
        part("plan", 0, None)
        budget = replace(settings, target=Target(quantity, share))
        try:
            made = plan(analysis, budget, data=batches, sensitivity=curves)
        except PlanError as error:
            if error.code != "OP301":
                raise
            trials.append(Trial(share, float("inf")))
            low = share
            continue
        part("rewrite and verify", 0, None)
        pruned = prune(analysis, made, inputs=inputs, tolerance=tolerance, seed=settings.seed)
        repairs = repair(pruned, batches, method=method, seed=settings.seed, progress=part)
        evaluation = evaluate(pruned.proto, judged, against=analysis.graph.proto, seed=settings.seed, progress=part)
        metric = _metric(evaluation)
        trials.append(Trial(share, loss(evaluation, metric)))
        log.info(f"{quantity} at {share:.0%}: {metric} drops by {trials[-1].loss:.2%}")
        if trials[-1].loss <= max_drop:
            best, high = MaxDropResult(pruned, repairs, evaluation, metric, ()), share
        else:
            low = share
    if best is None:
        least = min((t.loss for t in trials), default=float("nan"))
        cause = f"no removal keeps the drop within {max_drop:.2%}: the smallest removal tried costs {least:.2%}"
        raise VerificationError("OP506", cause, hint="allow a larger drop, give more data, or fine-tune")
    return replace(best, trials=tuple(trials))


def _divide(data: Dataset, limit: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split samples into those for calibration and those for evaluation."""
    order = np.random.default_rng(seed).permutation(len(data))
    count = min(limit, len(order) // 2)
    if count < 1:
        raise DataError("OP712", "a single sample can't serve both calibration and evaluation")
    return data.subset(np.sort(order[:count])), data.subset(np.sort(order[count : count + _JUDGED]))


def _metric(evaluation: Evaluation) -> str:
    found = judging({score.metric for score in evaluation.scores})
    if found is None:
        cause = f"no drop in accuracy can be measured: {evaluation.recognized}"
        raise DataError("OP711", cause, hint="set a `target` instead, and evaluate the result with another metric")
    return found
