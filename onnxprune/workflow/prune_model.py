"""The whole workflow, as the command `prune` runs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxprune.data import Data, Dataset, some
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.file import Model, Source, load
from onnxprune.model.session import with_threads
from onnxprune.planning.plan import PrunePlan
from onnxprune.progress import Progress, silent
from onnxprune.recover import LeftOut, Method, Repair, unrepaired
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import parse_provider
from onnxprune.sensitivity import Curve
from onnxprune.settings import PruneSettings
from onnxprune.settings.declare import given
from onnxprune.settings.planning import Limited
from onnxprune.settings.pruning import LIMIT
from onnxprune.settings.reading import either
from onnxprune.shapes.batch import fix_batch
from onnxprune.train.finetune import FineTuned
from onnxprune.trimming.proof import Trimmed
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.checkpoints import records_of
from onnxprune.workflow.inputs import as_opened, open_all, open_samples, tell_of_front, transformed
from onnxprune.workflow.iterative import prune_iteratively
from onnxprune.workflow.max_drop import prune_within
from onnxprune.workflow.planning import curves_in, plan, read_curves, read_plan, recorded, settled
from onnxprune.workflow.pruning import Pruned, as_graphsurgeon, prune, repair
from onnxprune.workflow.resolution import at_chosen
from onnxprune.workflow.training import train, training_of
from onnxprune.workflow.trials import Trial
from onnxprune.workflow.trimming import trim

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_BUDGETS = {"ratio", "ratio_for", "remove_blocks", "resolution", "target"}

log = logging.getLogger(__name__)

Judged = Literal["held out", "calibration", "generated"]
"""Samples to judge a result on: those of the user's that weren't fitted to, those that were, or generated ones."""

_ENOUGH = 50  # samples to judge on


@dataclass(frozen=True, slots=True, repr=False)
class PruneResult:
    """The result of `prune_model`.

    Attributes:
        model: the final model; `save` writes external data if the source had external data.
        analysis: the traced original, at the resolution of the plan.
        pruned: the model before training, with its plan and its proof.
        repairs: the error of each repaired layer before and after.
        evaluation: the result against the original, if a drop in accuracy was the limit.
        tuned: the result of training; None without training.
        repaired: whether the model was repaired.
        trims: what was trimmed before; ``analysis`` is then of the trimmed model.
        drop: the drop in accuracy, if it was limited, on samples that nothing was chosen or calibrated by.
        verdict: this in words.
        data: samples to judge the result on; None without data, and if all were judged already or trained on.
        judged: what these samples are.
        fitted_on: the samples that repaired the model; None without repair.
        trials: the models tried, if a drop in accuracy was the limit.
        metric: the metric that the drop is measured in.
        allowed: the drop allowed; None if it isn't limited.
        minimized: the cost that was minimized within it.
        curves: the sensitivities that channels were chosen by, of the groups of the model as it was given.
    """

    model: Model
    analysis: TracedModel
    pruned: Pruned
    repairs: tuple[Repair, ...] = ()
    evaluation: Evaluation | None = None
    tuned: FineTuned | None = None
    repaired: bool = False
    trims: tuple[Trimmed, ...] = ()
    drop: Estimate | None = None
    verdict: str | None = None
    data: Dataset | None = None
    judged: Judged = "generated"
    fitted_on: Dataset | None = None
    trials: tuple[Trial, ...] = ()
    metric: str = ""
    allowed: float | None = None
    minimized: Limited = "macs"
    curves: Sequence[Curve] = ()

    def __repr__(self) -> str:
        """Return the plan, the proof, and what was done afterwards."""
        done = [*(["repaired"] if self.repairs else []), *(["trained"] if self.tuned else [])]
        return f"PruneResult({', '.join([repr(self.pruned), *done])})"

    def _repr_html_(self) -> str:
        """Return tables of the costs before and after, and of the accuracy if it was measured."""
        parts = (self.pruned, self.evaluation, None if self.tuned is None else self.tuned.after)
        return "".join(part._repr_html_() for part in parts if part is not None)

    @property
    def unrepaired(self) -> tuple[LeftOut, ...]:
        """The layers behind removed channels that a repair couldn't change, with the reasons."""
        made = self.pruned
        return unrepaired(made.kept, made.proto, made.teacher) if self.repaired else ()

    @property
    def new_ids(self) -> Mapping[int, int] | None:
        """The new id of each token that is kept, by its old one; None unless a vocabulary was trimmed."""
        return next((trimmed.new_ids for trimmed in self.trims if trimmed.new_ids is not None), None)

    @property
    def plan(self) -> PrunePlan:
        """What was removed."""
        return self.pruned.plan

    def to_graphsurgeon(self) -> gs.Graph:
        """Return the result as a new onnx-graphsurgeon graph."""
        return as_graphsurgeon(self.model)


def prune_model(
    model: Source,
    settings: PruneSettings | None = None,
    *,
    progress: Progress = silent,
    consume: bool = False,
    examples: int = 0,
    **options: Any,
) -> PruneResult:
    """Plan, prune and prove; with data, also repair and train. The command `prune` does the same.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        settings: the settings; `options` are an alternative.
        progress: called with phases and their parts.
        consume: whether `model`, if it is a Model, may be modified, which saves a copy of its weights.
        examples: number of samples on which the result and the original disagree most to keep in the evaluation, if a
            drop is the limit, or in that of the training.
        **options: fields of `PruneSettings`, `PlanSettings`, `Constraints`, `DataSettings`, `Policies`,
            `TrimSettings` and `LatencySettings`: target, ratio, data, max_drop, finetune, exclude, ...

    Raises:
        PlanError: settings are contradictory (OP302) or out of range (OP303), or the target can't be reached (OP301).
        UsageError: a setting is unknown, or there is no budget (OP602).
        ModelError: the model can't be read or run.
        DataError: the data can't be read or don't fit.
        RewriteError: the result isn't a valid model (OP403), or has other shapes than predicted (OP404).
        VerificationError: the result isn't the masked original (OP501), or any removal exceeds the drop (OP506).
        TrainingError: the pruned model can't be trained.

    Examples:
        >>> import onnxprune as op
        >>> small = op.prune_model("models/digits_resnet.onnx", target=op.Target("macs", 0.5))
        >>> small.plan.after["macs"] <= 0.5 * small.plan.before["macs"]
        True
        >>> small.pruned.verification.passed
        True
        >>> [tensor.name for tensor in small.to_graphsurgeon().outputs]
        ['logits']
    """
    settings = either(PruneSettings, settings, options)
    with custom_ops(*settings.running.custom_ops), with_threads(settings.latency.threads):
        return _prune_model(model, settings, progress, consume, examples)


def _prune_model(
    model: Source, settings: PruneSettings, progress: Progress, consume: bool, examples: int
) -> PruneResult:
    planning, calibration, seed = settings.planning, settings.calibration, settings.planning.seed
    made = read_plan(settings.plan) if isinstance(settings.plan, str | os.PathLike) else settings.plan
    trims: tuple[Trimmed, ...] = ()
    if given(settings.trimming) and not _BUDGETS & given(planning).keys():
        planning = replace(planning, ratio=0.0)
    if made is None and settings.max_drop is None:
        settled(planning, data=False)  # refuses a missing budget before the work
    parse_provider(settings.latency.provider or "cpu")  # refuses an unknown one before the work
    progress("load", 0, None)
    loaded = load(model)
    if given(settings.trimming):
        progress("trim", 0, None)
        loaded = loaded if settings.transform is None else transformed(loaded, settings.transform)
        loaded, trims = trim(loaded, settings)
        inputs = None if settings.inputs is None else trims[-1].inputs
        settings = replace(settings, transform=None, inputs=inputs)
    progress("trace", 0, None)
    analysis = analyze(
        loaded,
        settings.input_shapes,
        policies=settings.policies,
        plan=made,
        inputs=settings.inputs,
        data=calibration,
        transform=settings.transform,
        consume=consume or loaded is not model,
        in_batches=True,
    )
    del loaded  # and its weights, unless the caller keeps them
    method: Method | None = None if settings.recover == "none" else settings.recover or "reconstruct"
    proof: dict[str, Any] = {"inputs": settings.inputs, "tolerance": settings.tolerance}

    def samples(limit: int | None) -> Dataset:
        nonlocal calibration
        near = analysis.model.path
        opened = open_samples(calibration, analysis.graph, near=near, seed=seed, limit=limit, progress=progress)
        calibration = as_opened(calibration, opened)
        return opened

    if calibration.data is not None:
        tell_of_front(analysis.graph)
    training = training_of(settings, analysis.graph)
    with records_of(settings, settings.calibration, analysis.model.sha256, analysis) as records:
        curves = read_curves(settings.sensitivity, analysis)
        if settings.steps > 1 or settings.rewind is not None:
            analysis, planning = at_chosen(analysis, planning)
        if settings.max_drop is not None:
            assert method is not None
            near = analysis.model.path
            everything = open_all(calibration, analysis.graph, near=near, seed=seed, progress=progress)
            within = prune_within(
                *(analysis, planning, everything, settings.max_drop),
                minimize=settings.minimize or "macs",
                limit=calibration.limit or LIMIT,
                method=method,
                training=training,
                curves=curves,
                latency=settings.latency,
                records=records,
                examples=examples,
                progress=progress,
                **proof,
            )
            for written in (within.pruned.proto, within.proto):
                fix_batch(written)
            curves = curves or curves_in(records, analysis.graph)
            analysis = analyze(analysis, plan=within.pruned.plan)
            result = replace(analysis.model, proto=within.proto)
            return PruneResult(
                result,
                analysis,
                *(within.pruned, within.repairs, within.evaluation, within.tuned, True, trims),
                *(within.drop, within.verdict),
                fitted_on=within.fitted_on,
                trials=within.trials,
                metric=within.metric,
                allowed=settings.max_drop,
                minimized=settings.minimize or "macs",
                curves=curves,
            )
        enough = LIMIT if training is None or training.mimics else None
        opened = data = None if calibration.data is None else samples(enough)
        trained_on = held_back = tuned = None
        if opened is not None and training is not None:
            trained_on, held_back = training.hold_back(opened)
            data = trained_on if training.mimics else some(trained_on, calibration.limit or LIMIT, seed)
        if settings.steps > 1 or settings.rewind is not None:
            assert trained_on is not None and training is not None
            _, rounds = prune_iteratively(
                *(analysis, trained_on, planning, settings.steps),
                training=training.settings,
                validation=held_back,
                method=method,
                rewind=settings.rewind,
                progress=progress,
            )
            made, tuned = rounds[-1].plan, rounds[-1].tuned
        elif made is None:
            progress("score and plan", 0, None)
            known: dict[str, Any] = {"sensitivity": curves, "latency": settings.latency, "records": records}
            made = recorded(records, "plan", lambda: plan(analysis, planning, data=data, progress=progress, **known))
        curves = curves or curves_in(records, analysis.graph)
        progress("rewrite and verify" if settings.verify else "rewrite", 0, None)
        analysis = analyze(analysis, plan=made)
        pruned = prune(analysis, made, check=settings.verify, seed=seed, **proof)
        repairs: Sequence[Repair] = ()
        if data is not None and tuned is None and method is not None:
            repairs = repair(pruned, data, method=method, seed=seed, records=records, progress=progress)
        if training is not None and tuned is None:
            assert trained_on is not None and held_back is not None
            progress("train", 0, None)
            given_to = pruned, trained_on, held_back, analysis, training, records
            tuned = train(*given_to, examples=examples, progress=progress)
    for written in (pruned.proto, (tuned or pruned).proto):
        fix_batch(written)
    result = replace(analysis.model, proto=(tuned or pruned).proto)
    repaired = data is not None and method is not None
    done = PruneResult(result, analysis, pruned, tuple(repairs), None, tuned, repaired, trims, curves=curves)
    if opened is None:
        return done
    rest, judged = _apart(opened, synthetic=calibration.data == "random")
    if judged != "held out" and tuned is not None and tuned.before is not None:  # what chose the epoch judges as well
        if training is not None and training.mimics and analysis.moves:  # not the original so far
            return replace(done, data=held_back, judged="held out", fitted_on=data)
        return replace(done, fitted_on=data)
    return replace(done, data=rest, judged=judged, fitted_on=data if repairs or tuned else None)


def _apart(data: Dataset, *, synthetic: bool) -> tuple[Dataset, Judged]:
    """Return samples to judge a result on, and what they are: if there are enough, those that weren't chosen."""
    if isinstance(data, Data) and data.chosen is not None and not data.source.sequential:
        rest = np.setdiff1d(np.arange(len(data.source)), data.chosen)
        if len(rest) >= _ENOUGH:
            return replace(data, chosen=rest), "held out"
    return data, "generated" if synthetic else "calibration"
