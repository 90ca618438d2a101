"""Pruning as far as a drop in accuracy allows: bisection over the budget, each trial repaired and then measured.

The data are divided: some to calibrate on, others, never calibrated on, to measure the drop. Without labels the drop is
bounded by how often predictions disagree with the original's: every sample that becomes wrong is one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import DataError, PlanError, VerificationError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.progress import Progress, silent
from onnxprune.recover import Method, Repair
from onnxprune.sensitivity import Curve, loss
from onnxprune.settings.planning import PlanSettings, Quantity, Target
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.inputs import batches_of
from onnxprune.workflow.planning import plan, sensitivities, settled
from onnxprune.workflow.pruning import Arrays, Pruned, prune, repair

log = logging.getLogger(__name__)

# Samples to measure the drop on at most, and how close to the least cost the search goes.
_JUDGED = 2000
_PRECISION = 0.02
# What a drop is measured in, the first that can be.
_METRICS = ("top1", "miou", "agreement")


@dataclass(frozen=True, slots=True)
class Trial:
    """A budget that was tried.

    Attributes:
        share: the limit, as a share of the original's cost.
        loss: the drop that it led to, infinite where the constraints don't let the budget be reached.
    """

    share: float
    loss: float


@dataclass(frozen=True, slots=True)
class MaxDropResult:
    """The smallest model within the drop allowed.

    Attributes:
        pruned: the model, repaired, with its proof and plan.
        repairs: what became of each layer.
        evaluation: of the model against the original, on samples that it wasn't calibrated on.
        metric: the metric whose drop was limited.
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
    """Prune and repair a model as far as a drop in accuracy allows.

    Args:
        analysis: the model.
        settings: how to plan; their budget is replaced.
        data: samples; with class labels the drop is one of accuracy (or mean IoU), without it is disagreement.
        max_drop: the largest drop, a share: 0.01 is one point.
        quantity: the cost to bring down.
        limit: calibrate on so many samples, at most half of them.
        method: of repair.
        curves: sensitivities for the allocation "reconstruction", if they were measured before.
        inputs: for the proof, see `prune`.
        tolerance: likewise.
        progress: called with the budgets that were tried.

    Raises:
        VerificationError: not even the smallest removal keeps within the drop (OP506), or a proof failed (OP501).
        PlanError: a setting is out of range.
        DataError: the data can't be read, are too few (OP712), or tell nothing of accuracy (OP711).
    """
    if not 0 <= max_drop < 1:
        raise PlanError("OP303", f"{max_drop} is out of range: must be at least 0 and below 1", where="max_drop")
    calibration, judged = _divide(data, limit, settings.seed)
    batches = batches_of(calibration, analysis.graph.proto)
    settings = settled(replace(settings, ratio=None, target=Target(quantity, 1.0)), data=True)
    if settings.allocation == "reconstruction" and curves is None and not settings.remove_blocks:
        curves = sensitivities(analysis, settings, batches, progress=progress)
    best: MaxDropResult | None = None
    trials: list[Trial] = []
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        share = (low + high) / 2
        budget = replace(settings, target=Target(quantity, share))
        try:
            made = plan(analysis, budget, data=batches, sensitivity=curves)
        except PlanError as error:
            if error.code != "OP301":
                raise
            trials.append(Trial(share, float("inf")))
            low = share
            continue
        pruned = prune(analysis, made, inputs=inputs, tolerance=tolerance, seed=settings.seed)
        repairs = repair(pruned, batches, method=method, seed=settings.seed)
        evaluation = evaluate(pruned.proto, judged, against=analysis.graph.proto, seed=settings.seed)
        metric = _metric(evaluation)
        trials.append(Trial(share, loss(evaluation, metric)))
        log.info(f"{quantity} at {share:.0%}: {metric} drops by {trials[-1].loss:.2%}")
        progress("search", len(trials), None)
        if trials[-1].loss <= max_drop:
            best, high = MaxDropResult(pruned, repairs, evaluation, metric, ()), share
        else:
            low = share
    if best is None:
        least = min((t.loss for t in trials), default=float("nan"))
        cause = f"no removal keeps the drop within {max_drop:.2%}: the smallest tried costs {least:.2%}"
        raise VerificationError("OP506", cause, hint="allow a larger drop, give more data, or fine-tune")
    return replace(best, trials=tuple(trials))


def _divide(data: Dataset, limit: int, seed: int) -> tuple[Dataset, Dataset]:
    """Choose samples to calibrate on and others to judge by."""
    order = np.random.default_rng(seed).permutation(len(data))
    count = min(limit, len(order) // 2)
    if count < 1:
        raise DataError("OP712", "a single sample can't be calibrated on and judged by")
    return data.subset(np.sort(order[:count])), data.subset(np.sort(order[count : count + _JUDGED]))


def _metric(evaluation: Evaluation) -> str:
    measured = {score.metric for score in evaluation.scores}
    found = next((name for name in _METRICS if name in measured), None)
    if found is None:
        cause = "neither labels nor the outputs tell what is right, so that no drop in accuracy can be measured"
        raise DataError("OP711", cause, hint="set a `target` instead, and judge the result by another metric")
    return found
