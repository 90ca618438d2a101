"""Trials of a search within a drop in accuracy: models that are planned, proved, repaired, trained and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from onnx import ModelProto

from onnxprune.errors import PlanError
from onnxprune.evaluation import Estimate
from onnxprune.model.resumable import Records
from onnxprune.planning.plan import PrunePlan
from onnxprune.progress import Progress, within
from onnxprune.recover import Method, Repair
from onnxprune.resolution.images import Size
from onnxprune.resolution.resize import text
from onnxprune.sensitivity import drop
from onnxprune.settings.evaluation import METRICS
from onnxprune.settings.planning import Limited
from onnxprune.train.finetune import FineTuned
from onnxprune.workflow.analysis import TracedModel, moved
from onnxprune.workflow.drop import DropMeasure
from onnxprune.workflow.inputs import calibration_batches
from onnxprune.workflow.planning import recorded
from onnxprune.workflow.pruning import Arrays, Pruned, prune, repair
from onnxprune.workflow.training import Training, forget_training, train

log = logging.getLogger(__name__)

Planner = Callable[[Progress], PrunePlan]


@dataclass(frozen=True, slots=True)
class Trial:
    """A model that a search has tried.

    Attributes:
        share: its cost, or the limit that channels were removed for, as a share of the original's; NaN if the limits
            were given.
        drop: the drop in accuracy, with its interval; infinite if the constraints make the limit unreachable.
        accepted: whether the model is within the drop.
        sizes: the sizes that images are resized to, by input; empty for none.
        macs: its multiply-accumulates, as a share of the original's; NaN if the limit is unreachable.
        samples: the number of samples that the drop was measured on: few if they showed that it is too large.
    """

    share: float
    drop: Estimate
    accepted: bool
    sizes: Mapping[str, Size]
    macs: float
    samples: int

    @property
    def loss(self) -> float:
        """The drop in accuracy."""
        return self.drop.value

    @property
    def image(self) -> str:
        """The sizes of images in words; empty if they stay."""
        return " ".join(text(size) for size in dict.fromkeys(self.sizes.values()))


@dataclass(frozen=True, slots=True)
class Made:
    """A model of a trial.

    Attributes:
        pruned: the model before training, with its plan and its proof.
        repairs: the error of each repaired layer before and after.
        tuned: the result of training; None without training.
    """

    pruned: Pruned
    repairs: tuple[Repair, ...]
    tuned: FineTuned | None

    @property
    def proto(self) -> ModelProto:
        """The final model."""
        return (self.tuned or self.pruned).proto


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes models of plans.

    Attributes:
        analysis: the traced original.
        measure: measures drops; its samples serve to repair and to train.
        method: how to repair.
        training: how to train each; None for no training.
        inputs: inputs for the proof.
        tolerance: tolerance of the proof.
        records: layers that are repaired already; filled as others are.
    """

    analysis: TracedModel
    measure: DropMeasure
    method: Method
    training: Training | None
    inputs: Arrays | None
    tolerance: float | None
    records: Records

    def __call__(self, plan: PrunePlan, name: str, progress: Progress) -> Made:
        """Make a model; what is done is recorded by its name."""
        original, parts, records, seed = self.analysis.original, self.measure.parts, self.records, self.measure.seed
        progress("rewrite and verify", 0, None)
        at = moved(self.analysis, plan.moves)
        pruned = prune(at, plan, inputs=self.inputs, tolerance=self.tolerance, seed=seed)
        repairs: tuple[Repair, ...] = ()
        if plan.removed or plan.blocks or plan.ranks or plan.tokens:
            batches = calibration_batches(parts.calibration, original)
            repairs = repair(
                *(pruned, batches), method=self.method, seed=seed, records=records, name=name, progress=progress
            )
        tuned = None
        if self.training is not None:
            given = pruned, parts.training, parts.validation, at, self.training, records
            tuned = train(*given, name=name, progress=progress)
        return Made(pruned, repairs, tuned)


class Trials:
    """The trials of a search, and the smallest model among those that are accepted.

    Attributes:
        done: the trials, in order.
        best: the accepted one with the smallest share; None so far.
        seconds: how long those took whose channels were removed, without those of a run before.
    """

    def __init__(self, make: Maker, minimize: Limited) -> None:
        """Start without trials.

        Args:
            make: makes models.
            minimize: the cost that trials are compared by.
        """
        self.done: list[Trial] = []
        self.best: Trial | None = None
        self.seconds: list[float] = []
        self._make, self._measure, self._records, self._minimize = make, make.measure, make.records, minimize
        self._name = ""  # of the best
        self._model: Made | None = None  # likewise, unless it is of a run before

    def add(self, what: str, planned: Planner, progress: Progress, share: float | None = None) -> Trial:
        """Make a model and measure its drop, unless a run before did.

        Args:
            what: the model in words.
            planned: returns its plan.
            progress: called with the phases.
            share: the limit of its cost, which may turn out to be out of reach; the cost itself if None.

        Raises:
            PlanError: there is no plan.
            VerificationError: the proof failed (OP501).
        """
        began, name, model = perf_counter(), f"trial{len(self.done) + 1}", None
        if name in self._records:
            trial = _read(self._records[name])
        elif (plan := self._planned(name, planned, progress, may_fail=share is not None)) is None:
            assert share is not None
            trial = Trial(share, Estimate(*[float("inf")] * 3), False, {}, float("nan"), 0)
        else:
            model = self._make(plan, name, progress)
            trial = self._measured(model, what, share, progress)
            self.seconds += [perf_counter() - began] if plan.removed else []
        self.done.append(trial)
        worse = name
        if trial.accepted and (self.best is None or trial.share < self.best.share):
            worse, self._name = self._name, name
            self.best, self._model = trial, model
        if worse:
            self._records.drop(f"{worse}/repair")
            self._records.drop(f"{worse}/plan")
        self._records.keep(name, asdict(trial))
        if worse:
            forget_training(self._records, worse)
        return trial

    def model(self, progress: Progress) -> Made:
        """Return the best model, made again if it is of a run before."""
        if self._model is None:
            plan = PrunePlan.from_json(self._records[f"{self._name}/plan"].encode(), str(self._records.path))
            self._model = self._make(plan, self._name, within(progress, "make the best model again"))
        return self._model

    def _planned(self, name: str, planned: Planner, progress: Progress, *, may_fail: bool) -> PrunePlan | None:
        """Return a plan; None if its limit is out of reach."""
        progress("plan", 0, None)
        try:
            return recorded(self._records, f"{name}/plan", lambda: planned(progress))
        except PlanError as error:
            if error.code != "OP301" or not may_fail:
                raise
            return None

    def _measured(self, model: Made, what: str, share: float | None, progress: Progress) -> Trial:
        measure, plan = self._measure, model.pruned.plan
        fitted = bool(model.repairs or model.tuned)
        found = measure(model.proto, progress, fitted=fitted)
        estimate, accepted, note = drop(found, measure.metric), measure.accepts(found), ""
        if found.samples < len(measure.parts.to_choose_by(fitted=fitted)):
            note = f", on the first {found.samples} samples already"
        elif not accepted and estimate.value <= measure.max_drop:
            note = ", but too many right answers became wrong, and as many wrong ones right"
        log.info("%s: %s%s", what, drops(measure.metric, estimate), note)
        macs, cost = (plan.after[q] / max(plan.before[q], 1) for q in ("macs", self._counted))
        return Trial(cost if share is None else share, estimate, accepted, plan.resolution, macs, found.samples)

    @property
    def _counted(self) -> str:
        return "macs" if self._minimize == "latency" else self._minimize


def _read(entry: Mapping[str, Any]) -> Trial:
    """Return a trial from the records."""
    sizes = {name: (int(size[0]), int(size[1])) for name, size in entry["sizes"].items()}
    return Trial(**{**entry, "drop": Estimate(**entry["drop"]), "sizes": sizes})


def drops(metric: str, found: Estimate) -> str:
    """Return a drop with its interval in words: "top-1 drops by 1.0% (-0.5% to 2.5%)"."""
    facts = METRICS[metric]
    value, low, high = (f"{100 * n + 0.0:.1f}%" for n in (found.value, found.low, found.high))
    return f"{facts.title} {'drops' if facts.higher else 'rises'} by {value} ({low} to {high})"
