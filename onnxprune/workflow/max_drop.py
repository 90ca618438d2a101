"""Pruning within an allowed drop in accuracy: a search over the budget, whose trials are repaired and evaluated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from time import perf_counter

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import PlanError, VerificationError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.resumable import Records
from onnxprune.planning.budget import with_names
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.progress import Progress, silent, within
from onnxprune.recover import Method, Repair
from onnxprune.sensitivity import Curve, drop, predicted_error
from onnxprune.settings import LatencySettings, TrainSettings
from onnxprune.settings.evaluation import METRICS
from onnxprune.settings.planning import Limited, PlanSettings, Target
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.drop import DropMeasure, Parts, divide
from onnxprune.workflow.inputs import calibration_batches
from onnxprune.workflow.planning import plan, recorded, sensitivities, settled
from onnxprune.workflow.pruning import Arrays, Pruned, prune, repair
from onnxprune.workflow.resolution import at_chosen

log = logging.getLogger(__name__)

_PRECISION = 0.02  # of the budget found, as a share of the cost
_TRIALS = 5
_ERROR = 3.0  # predicted error of the outputs at the first trial, relative to the drop allowed
_EDGE = 0.15  # the least distance of a trial from both ends, relative to the range that is left and to what is removed
_EVERY = 50  # training steps between two checkpoints
_WORTH_TELLING = 30  # seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget of the search.

    Attributes:
        share: the limit, as a share of the original's cost; NaN if the limits were given.
        loss: the drop in accuracy; infinite if the constraints make the budget unreachable.
        accepted: whether the model is within the drop.
    """

    share: float
    loss: float
    accepted: bool


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
        trials: the budgets tried, in order.
        tuned: the result of training; None without training.
    """

    pruned: Pruned
    repairs: tuple[Repair, ...]
    evaluation: Evaluation
    metric: str
    drop: Estimate
    verdict: str
    trials: tuple[Trial, ...]
    tuned: FineTuned | None = None

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
    training: TrainSettings | None = None,
    curves: Sequence[Curve] | None = None,
    latency: LatencySettings | None = None,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    records: Records | None = None,
    progress: Progress = silent,
) -> MaxDropResult:
    """Return the smallest pruned and repaired model within a drop in accuracy; with targets, the one that meets them.

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
    analysis, settings = at_chosen(analysis, settings)
    parts = divide(data, limit, settings.seed, training=training is not None)
    measure = DropMeasure(analysis.original, parts, max_drop, settings.seed)
    measure.check(progress)
    settings = replace(settings, constraints=with_names(settings.constraints, analysis.graph), ratio=None)
    search = _Search(
        analysis,
        settings,
        parts,
        measure,
        minimize=minimize,
        make=_Maker(analysis, parts, method, training, inputs, tolerance, settings.seed, records or Records()),
        latency=latency or LatencySettings(),
    )
    return search.run(curves, progress)


@dataclass(frozen=True, slots=True)
class _Made:
    """A model of a trial."""

    pruned: Pruned
    repairs: tuple[Repair, ...]
    tuned: FineTuned | None

    @property
    def proto(self) -> ModelProto:
        return (self.tuned or self.pruned).proto


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes models of plans: pruned, proved, repaired and trained."""

    analysis: TracedModel
    parts: Parts
    method: Method
    training: TrainSettings | None
    inputs: Arrays | None
    tolerance: float | None
    seed: int
    records: Records

    def __call__(self, made: PrunePlan, name: str, progress: Progress) -> _Made:
        """Make a model; it is recorded by its name."""
        original, records = self.analysis.original, self.records
        progress("rewrite and verify", 0, None)
        pruned = prune(self.analysis, made, inputs=self.inputs, tolerance=self.tolerance, seed=self.seed)
        batches = calibration_batches(self.parts.calibration, original)
        repairs = repair(
            *(pruned, batches), method=self.method, seed=self.seed, records=records, name=name, progress=progress
        )
        tuned = None
        if self.training is not None:
            tuned = train(
                *(pruned.proto, self.parts.training, original, self.training, records), name=name, progress=progress
            )
        return _Made(pruned, repairs, tuned)


def train(
    model: ModelProto,
    data: Dataset,
    teacher: ModelProto,
    settings: TrainSettings,
    records: Records,
    *,
    name: str = "training",
    progress: Progress = silent,
) -> FineTuned:
    """Train a model with its original as teacher; its state is kept in a file beside the records.

    Raises:
        TrainingError: it can't be trained.
    """
    path = training_file(records.path, name)
    tuned = finetune(
        *(model, data),
        teacher=teacher,
        settings=settings,
        progress=progress,
        checkpoint=path,
        every=0 if path is None else _EVERY,
        resume=records.resumes,
    )
    if tuned.failure is not None:
        log.warning("%s; the best model before the failure is kept", tuned.failure.cause)
    return tuned


def training_file(path: Path | None, name: str) -> Path | None:
    """Return the file for the state of a training that is part of other work."""
    return None if path is None else path.with_name(f"{path.stem}.{name}{path.suffix or '.npz'}")


class _Search:
    """The search for the smallest model."""

    def __init__(
        self,
        analysis: TracedModel,
        settings: PlanSettings,
        parts: Parts,
        measure: DropMeasure,
        *,
        minimize: Limited,
        make: _Maker,
        latency: LatencySettings,
    ) -> None:
        self.analysis, self.parts, self.measure, self.make = analysis, parts, measure, make
        self.minimize, self.latency = minimize, latency
        self.given = settings.targets
        self.settings = settled(replace(settings, target=self.given or Target(minimize, 1.0)), data=True)
        self.batches = calibration_batches(parts.calibration, analysis.graph.proto)
        self.curves: Sequence[Curve] | None = None
        self.trials: list[Trial] = []
        self.best: tuple[float, tuple[Target, ...], str] | None = None
        self.model: _Made | None = None  # the best one, unless it is of a run before
        self.seconds: list[float] = []

    def run(self, curves: Sequence[Curve] | None, progress: Progress) -> MaxDropResult:
        """Search, and judge what was found."""
        if (seconds := self._estimate(curves is None)) > _WORTH_TELLING:
            log.info("this takes about %s", _duration(seconds))
        if self.settings.allocation == "reconstruction" and not self.settings.remove_blocks:
            self.curves = curves or sensitivities(
                *(self.analysis, self.settings, self.batches), records=self.make.records, progress=progress
            )
        if self.given:
            self._try(float("nan"), self.given, within(progress, "trial"))
        else:
            self._narrow(progress)
        max_drop, metric = self.measure.max_drop, self.measure.metric
        if self.best is None:
            least = min((t.loss for t in self.trials), default=float("nan"))
            tried = "the limits cost" if self.given else "the smallest removal tried costs"
            cause = f"no removal keeps the drop within {max_drop:.2%}: {tried} {least:z.2%}"
            if any(t.loss <= max_drop for t in self.trials):
                cause = (
                    f"the drop is within {max_drop:.2%} only because as many wrong answers became right as right wrong"
                )
            raise VerificationError("OP506", cause, hint="allow a larger drop, give more data, or fine-tune")
        _, targets, name = self.best
        made = self.model
        if made is None:
            part = within(progress, "make the best model again")
            chosen = self._plan(targets, part, name)
            assert chosen is not None
            made = self.make(chosen, name, part)
        found = self.measure(made.proto, self.parts.judging, within(progress, "judge"), final=True)
        estimate = drop(found, metric)
        interval = f"{_points(estimate.low)} to {_points(estimate.high)}"
        figures = f"{_drops(metric)} by {_points(estimate.value)} ({interval})"
        verdict = f"{figures} on {found.samples} samples that chose nothing"
        if estimate.low > max_drop:
            cause = f"the drop isn't within {max_drop:.2%}: {verdict}"
            raise VerificationError("OP506", cause, hint="allow a larger drop, give more data, or fine-tune")
        if estimate.value > max_drop:
            log.warning("%s: more than %.3g%%, though within the error of measurement", verdict, 100 * max_drop)
        judged = found, metric, estimate, f"judged: {verdict}"
        return MaxDropResult(made.pruned, made.repairs, *judged, tuple(self.trials), made.tuned)

    def _estimate(self, measures: bool) -> float:
        """Estimate the seconds of the search, from those of running the original on a sample; a rough guess."""
        calibration, choosing = len(self.parts.calibration), len(self.parts.choosing)
        curves = 0.25 * len(self.analysis.graph.groups) + 2 if measures else 0
        trial = 5 * calibration + 2 * choosing
        if self.make.training is not None:
            trial += 3 * self.make.training.epochs * len(self.parts.training)
        return self.measure.seconds * (curves * calibration + (1 if self.given else _TRIALS) * trial)

    def _narrow(self, progress: Progress) -> None:
        """Try budgets between the smallest that was kept and the largest that wasn't."""
        low, high = 0.0, 1.0
        share = self._first()
        while high - low > _PRECISION and len(self.trials) < _TRIALS:
            number = len(self.trials) + 1
            left = ""
            if self.seconds:
                left = f", about {_duration(fmean(self.seconds) * (_TRIALS - number + 1))} left"
            part = within(progress, f"trial {number} of {_TRIALS}, {self.minimize} at {share:.0%}{left}")
            trial = self._try(share, (Target(self.minimize, share),), part)
            low, high = (low, share) if trial.accepted else (share, high)
            share = self._next(trial, low, high)

    def _first(self) -> float:
        """Return the first budget: where the error of the outputs that curves predict fits the drop."""
        if self.curves is None or self.minimize == "latency":
            return 0.5 if self.minimize != "latency" else 0.75
        curves, wanted = {curve.group: curve for curve in self.curves}, _ERROR * max(self.measure.max_drop, 1e-3)
        low, high = 0.0, 1.0
        for _ in range(5):
            share = (low + high) / 2
            made = self._plan((Target(self.minimize, share),))
            graph = self.analysis.graph
            over = made is None or predicted_error(graph, curves, apply_plan(graph, made).removed) > wanted
            low, high = (share, high) if over else (low, share)
        return high if high < 1 else (low + high) / 2

    def _next(self, last: Trial, low: float, high: float) -> float:
        """Return the next budget: the drop grows with the square of what is removed, roughly."""
        removed = 1 - high if high < 1 else high - low
        middle, edge = (low + high) / 2, max(_EDGE * min(high - low, removed), _PRECISION / 2)
        if not 0 < last.loss < 1:
            return middle
        wanted = (1 - last.share) * sqrt(max(self.measure.max_drop, 1e-4) / last.loss)
        return min(max(1 - wanted, low + edge), high - edge)

    def _plan(self, targets: tuple[Target, ...], progress: Progress = silent, name: str = "") -> PrunePlan | None:
        """Return the plan for some limits; None if they are out of reach. With a name, it is recorded."""
        settings, known = replace(self.settings, target=targets), self.curves

        def make() -> PrunePlan:
            return plan(
                self.analysis, settings, data=self.batches, sensitivity=known, latency=self.latency, progress=progress
            )

        try:
            return recorded(self.make.records if name else Records(), f"{name}/plan", make)
        except PlanError as error:
            if error.code != "OP301" or self.given:
                raise
            return None

    def _try(self, share: float, targets: tuple[Target, ...], progress: Progress) -> Trial:
        """Make a model and measure its drop on the samples that choose."""
        began, name, records = perf_counter(), f"trial{len(self.trials) + 1}", self.make.records
        if name in records:
            loss, accepted = records[name]
            model = None
        else:
            progress("plan", 0, None)
            made = self._plan(targets, progress, name)
            model = None if made is None else self.make(made, name, progress)
            loss, accepted = (float("inf"), False) if model is None else self._measured(model, targets, progress)
            self.seconds += [] if model is None else [perf_counter() - began]
        self.trials.append(Trial(share, loss, accepted))
        worse = name
        if accepted and (self.best is None or share < self.best[0]):
            worse = "" if self.best is None else self.best[2]
            self.best, self.model = (share, targets, name), model
        if worse:
            records.drop(f"{worse}/repair")
            records.drop(f"{worse}/plan")
        records.keep(name, [loss, accepted])
        if worse and (file := training_file(records.path, worse)) is not None:
            file.unlink(missing_ok=True)
        return self.trials[-1]

    def _measured(self, model: _Made, targets: tuple[Target, ...], progress: Progress) -> tuple[float, bool]:
        """Return the drop of a model, and whether it is accepted."""
        measure = self.measure
        bound = measure.hopeless(model.proto, progress)
        if bound is None:
            found = measure(model.proto, self.parts.choosing, progress)
            loss, accepted = drop(found, measure.metric).value, measure.accepts(found)
        else:
            loss, accepted = bound.value, False
        note = "" if bound is None else ", on the first samples already"
        if not accepted and loss <= measure.max_drop:
            note = ", but too many right answers became wrong, and as many wrong ones right"
        limits = " and ".join(f"{t.quantity} at {t.shown if t.absolute else f'{t.value:.0%}'}" for t in targets)
        log.info("%s: %s by %s%s", limits, _drops(measure.metric), _points(loss), note)
        return loss, accepted


def _drops(metric: str) -> str:
    return f"{METRICS[metric].title} {'drops' if METRICS[metric].higher else 'rises'}"


def _points(drop: float) -> str:
    return f"{100 * drop + 0.0:.1f}%"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
