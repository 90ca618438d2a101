"""Pruning within an allowed drop in accuracy: a search whose result is judged on samples that chose nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import PlanError, VerificationError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.resumable import Records
from onnxprune.planning.budget import with_names
from onnxprune.progress import Progress, duration, silent, within
from onnxprune.recover import Method, Repair
from onnxprune.recover.repair import repair_runs
from onnxprune.sensitivity import Curve, drop
from onnxprune.settings import LatencySettings
from onnxprune.settings.planning import Limited, PlanSettings, Target
from onnxprune.train.finetune import FineTuned
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.bases import in_bases
from onnxprune.workflow.drop import DropMeasure, divide
from onnxprune.workflow.inputs import calibration_batches
from onnxprune.workflow.planning import plan, sensitivities, settled
from onnxprune.workflow.pruning import Arrays, Pruned
from onnxprune.workflow.resolution import at_chosen, sizes_to_try
from onnxprune.workflow.search import TRIALS, Search
from onnxprune.workflow.training import Training
from onnxprune.workflow.trials import Maker, Trial, Trials, drops

log = logging.getLogger(__name__)

_WORTH_TELLING = 30  # seconds
_HINT = "allow a larger drop, give more data, or fine-tune"


@dataclass(frozen=True, slots=True)
class MaxDropResult:
    """The smallest model within the drop allowed.

    Attributes:
        pruned: the model, repaired, with its proof and plan.
        repairs: the error of each layer before and after repair.
        evaluation: the result against the original, on samples that nothing was chosen or calibrated by.
        metric: the metric that the drop is measured in.
        drop: the drop on these samples.
        verdict: this in words.
        trials: the models tried, in order.
        tuned: the result of training; None without training.
        fitted_on: the samples that repaired it; None if nothing was repaired.
    """

    pruned: Pruned
    repairs: tuple[Repair, ...]
    evaluation: Evaluation
    metric: str
    drop: Estimate
    verdict: str
    trials: tuple[Trial, ...]
    tuned: FineTuned | None = None
    fitted_on: Dataset | None = None

    @property
    def proto(self) -> ModelProto:
        """The final model."""
        return (self.tuned or self.pruned).proto


def prune_within(
    analysis: TracedModel,
    settings: PlanSettings,
    data: Dataset,
    max_drop: float,
    *,
    minimize: Limited = "macs",
    limit: int = 512,
    method: Method = "reconstruct",
    training: Training | None = None,
    curves: Sequence[Curve] | None = None,
    latency: LatencySettings | None = None,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    records: Records | None = None,
    examples: int = 0,
    progress: Progress = silent,
) -> MaxDropResult:
    """Return the smallest pruned and repaired model within a drop in accuracy; with targets, the one that meets them.

    Images are made smaller inside the model as well, where `axes` allows it and the cost is macs or memory.

    Args:
        analysis: the model.
        settings: how to plan. With targets, these are met, and the drop is checked.
        data: samples. With labels, the drop is in the task's first metric of `METRICS`; without, it is disagreement.
        max_drop: the largest drop, a share: 0.01 is one percentage point.
        minimize: the cost to minimize; latencies are measured.
        limit: number of samples for calibration, at most half of them.
        method: how to repair.
        training: how to train every trial, on all samples that nothing is measured on; None for no training.
        curves: sensitivities measured before, for the allocation "reconstruction".
        latency: where latencies are measured.
        inputs: inputs for the proof, see `prune`.
        tolerance: tolerance of the proof, see `prune`.
        records: what is done already; filled during the search.
        examples: number of samples on which the result and the original disagree most to keep in the evaluation.
        progress: called with the phases of each trial.

    Raises:
        VerificationError: even the smallest removal exceeds the drop, the targets do, or the result does on samples
            that it wasn't chosen by (OP506); or a proof failed (OP501).
        PlanError: a setting is out of range, or a target is out of reach.
        DataError: the data can't be read, are too few (OP712), allow no measure of accuracy (OP711), or can't tell
            the original from a network that ignores its input (OP713).
    """
    if not 0 <= max_drop < 1:
        raise PlanError("OP303", f"{max_drop} is out of range: must be at least 0 and below 1", where="max_drop")
    settings = replace(settings, ratio=None, constraints=with_names(settings.constraints, analysis.graph))
    records, latency, given = records or Records(), latency or LatencySettings(), settings.targets
    held_back = 0.0 if training is None else training.held_back
    parts = divide(data, limit, settings.seed, training=training is not None, validated=held_back)
    training = None if training is None else training.shared(1 if given else TRIALS)
    batches = calibration_batches(parts.calibration, analysis.original)
    whole = settled(replace(settings, target=given or Target(minimize, 1.0)), data=True)
    analysis = analysis if curves else in_bases(analysis, whole, batches, progress)
    at, channels = at_chosen(analysis, whole)
    # Ranks and tokens are chosen for a cost, together with the other axes: each trial is such a choice.
    joint = {"rank", "tokens"} & set(settings.axes)
    resized = replace(channels, axes=settings.axes, resolution=settings.resolution)
    sizes = [] if joint else sizes_to_try(at, resized, batches, data)
    measure = DropMeasure(at.original, parts, max_drop, settings.seed)
    measure.check(progress)
    trials = Trials(Maker(at, measure, method, training, inputs, tolerance, records), minimize)
    if (seconds := _estimate(at, measure, training, curves is None, 1 if given else TRIALS)) > _WORTH_TELLING:
        log.info("this takes about %s", duration(seconds))
    if given:
        how = settings if sizes or joint else channels
        known: dict[str, Any] = {"data": batches, "sensitivity": curves, "latency": latency, "records": records}
        what, part = " and ".join(map(_limit, given)), within(progress, "trial")
        trials.add(what, lambda progress: plan(at, how, progress=progress, **known), part)
    else:
        axes = tuple(axis for axis in settings.axes if axis != "basis") if joint else channels.axes
        search = Search(at, replace(channels, axes=axes), trials, max_drop, minimize, batches, latency)
        search.resize(sizes, progress)
        if settings.allowed != ("resolution",):
            if "channels" in axes and channels.allocation == "reconstruction" and not channels.remove_blocks:
                curves = curves or sensitivities(at, channels, batches, records=records, progress=progress)
            else:
                curves = None
            search.remove(curves, progress)
    if trials.best is None:
        raise _none(trials.done, max_drop, bool(given))
    made = trials.model(progress)
    found = measure.judge(made.proto, within(progress, "judge"), examples=examples)
    estimate = drop(found, measure.metric)
    verdict = f"{drops(measure.metric, estimate)} on {found.samples} samples that chose nothing"
    if estimate.low > max_drop:
        raise VerificationError("OP506", f"the drop isn't within {max_drop:.2%}: {verdict}", hint=_HINT)
    if estimate.value > max_drop:
        log.warning("%s: more than %.3g%%, though within the error of measurement", verdict, 100 * max_drop)
    judged = found, measure.metric, estimate, f"judged: {verdict}"
    fitted_on = parts.calibration if made.repairs else None
    return MaxDropResult(made.pruned, made.repairs, *judged, tuple(trials.done), made.tuned, fitted_on)


def _limit(target: Target) -> str:
    return f"{target.quantity} at {target.shown if target.absolute else f'{target.value:.0%}'}"


def _none(trials: Sequence[Trial], max_drop: float, given: bool) -> VerificationError:
    """Return the error for a search that accepted nothing."""
    least = min((trial.loss for trial in trials), default=float("nan"))
    tried = "the limits cost" if given else "the smallest removal tried costs"
    cause = f"no removal keeps the drop within {max_drop:.2%}: {tried} {least:z.2%}"
    if any(trial.loss <= max_drop for trial in trials):
        cause = f"the drop is within {max_drop:.2%} only because as many wrong answers became right as right wrong"
    return VerificationError("OP506", cause, hint=_HINT)


def _estimate(
    analysis: TracedModel, measure: DropMeasure, training: Training | None, measures: bool, trials: int
) -> float:
    """Estimate the seconds of a search, from those of running the original on a sample; a rough guess."""
    calibration, choosing = len(measure.parts.calibration), len(measure.parts.choosing)
    curves = 0.25 * len(analysis.graph.groups) + 2 if measures else 0
    trial = repair_runs(analysis.cost) * calibration + 2 * choosing
    if training is not None:
        epochs = 3 * training.settings.epochs * len(measure.parts.training)
        trial += min(epochs, 60 * (training.settings.minutes or inf) / measure.seconds)
    return measure.seconds * (curves * calibration + trials * trial)
