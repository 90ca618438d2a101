"""Evaluation of a model on data, alone and against its original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isnan

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data.batch import Array, Batch, Dataset
from onnxprune.data.marks import fitted_marks, marks_of
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.evaluation.answers import Answers
from onnxprune.evaluation.choice import check_name, choose
from onnxprune.evaluation.disagreement import Disagreements
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.runner import Outputs, Runner
from onnxprune.evaluation.score import Evaluation, Meter, Resampler, Score, above_constant
from onnxprune.evaluation.tasks import Task, task_of
from onnxprune.evaluation.view import BatchView, image_size, view
from onnxprune.model.file import Source, load
from onnxprune.model.graph import extract
from onnxprune.model.session import Provider
from onnxprune.model.states import state_inputs
from onnxprune.progress import Progress, silent
from onnxprune.settings.evaluation import METRICS, judging
from onnxprune.shapes.runnable import operators, runnable_front
from onnxprune.trace.outputs import Followed, followed

_BOXES = ("boxes_original", "map_original")
_FIRST = 32  # samples that a task is recognized by
_ALIKE = 0.1  # share of the samples that may be taken for others that the model was fitted to
_LOOKS = 0.999  # coverage of intervals that are looked at after every batch


def evaluate(
    model: Source,
    dataset: Dataset,
    *,
    against: Source | None = None,
    metrics: Sequence[str] | None = None,
    output: str | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
    batch: int = 32,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    threads: int | None = None,
    examples: int = 0,
    known: Outputs | None = None,
    until: Callable[[Sequence[Score]], bool] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a model on data, in one pass and bounded memory.

    Args:
        model: the model.
        dataset: samples that fit it.
        against: the original model, run on the same samples for comparison.
        metrics: names from `METRICS`, or "module:function" of a user's metric; by default, all that the labels, the
            outputs and the original allow.
        output: the output that the labels are for; by default, the one that the data name, or found by its shape.
        providers: execution providers in order of preference.
        batch: batch size; models with a fixed one use theirs.
        confidence: coverage of the intervals.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
        threads: threads within an operator; ONNX Runtime's default if None.
        examples: number of samples on which the two models disagree most to keep.
        known: the original's outputs on these data, from evaluations before; filled during the first.
        until: ends the evaluation early once it returns True. It is called after each batch with the scores so far,
            whose intervals have a coverage of 99.9 %, because it looks often; not for metrics that don't add up.
        progress: called with the samples that are done, after each batch.

    Raises:
        DataError: the data can't be read or don't fit (OP701 to OP710), or a metric can't be measured (OP711).
        ModelError: a model can't be loaded or run.
        UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        VerificationError: the two models have different outputs (OP503).
    """
    for name in metrics or ():
        check_name(name)
    proto, reference = load(model).proto, None if against is None else load(against).proto
    if reference is not None and (difference := interface_difference(proto, reference)):
        raise VerificationError("OP503", difference)
    models, note = [proto] if reference is None else [proto, reference], None
    try:
        runners, found, fronts = _runners(models, providers, threads)
    except ModelError:
        cut = runnable_front(models[-1])
        if cut is None:
            raise
        models = [extract(m, cut.outputs) for m in models]
        runners, found, fronts = _runners(models, providers, threads)
        note = f"{operators(cut.missing)} can't be run, so that these tensors are measured: {', '.join(cut.outputs)}"
    run, run_original = runners[0], None if reference is None else runners[0 if model is against else 1]
    if state_inputs(proto):
        known = None  # the original's states are cut to those of this model

    def reference_of(samples: Batch, start: int) -> dict[str, Array]:
        assert run_original is not None
        return run_original(samples) if known is None else known.of(samples, start, fronts, run_original)

    seen_as = partial(view, fronts=fronts, behind=found.replaced)
    resampler, meters, task, done = Resampler(resamples, seed), None, None, 0
    apart = Disagreements(examples)
    fitted, known_to_it = fitted_marks(proto), 0
    for samples in dataset.batches(batch):
        its = None if run_original is None else reference_of(samples, done)
        outputs = its if its is not None and run_original is run else run(samples)
        if task is None:  # the original's outputs tell: those of a model that lost much may look otherwise
            own = {name: value for name, value in (its or outputs).items() if name not in fronts}
            task = _task(models[-1], found, own, samples, dataset, output)
        named = partial(_name, dataset, done)
        original = None if its is None else seen_as(task, its, samples, named)
        seen = seen_as(task, outputs, samples, named, original)
        meters = meters or _Meters(seen, metrics)
        meters.add(seen, resampler.weights(samples.count))
        apart.add(samples, seen, done)
        done += samples.count
        known_to_it += int(np.isin(marks_of(samples), fitted).sum()) if len(fitted) else 0
        progress("evaluate", done, dataset.known_length)
        if until is not None and not meters.keeps and until(meters.scores(_LOOKS)):
            break
    if meters is None or task is None:
        raise DataError("OP702", "the data have no samples")
    progress("compute the scores", 0, None)
    scores = meters.scores(confidence)
    doubts = tuple(filter(None, (meters.answers.shift(), _at_chance(scores), _without_boxes(scores))))
    return Evaluation(
        samples=done,
        scores=scores,
        not_finite=meters.not_finite,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        providers=tuple(p if isinstance(p, str) else p[0] for p in providers),
        notes=tuple(filter(None, (note, found.note() if fronts else None, _fitted(known_to_it, done), *doubts))),
        task=task.name,
        recognized=str(task),
        doubts=doubts,
        examples=apart.found(dataset),
    )


def _fitted(known: int, samples: int) -> str | None:
    """Return a note if a model was fitted to many of the samples; a few may only look so, as marks are short."""
    if known <= _ALIKE * samples:
        return None
    return f"the model was repaired on {known} of these {samples} samples, so expect a larger loss on new ones"


def _at_chance(scores: Sequence[Score]) -> str | None:
    """Return a note if the first metric that judges isn't better than a constant answer's."""
    metric = judging({score.metric for score in scores if score.constant is not None})
    score = next((score for score in scores if score.metric == metric), None)
    if score is None or score.constant is None or above_constant(score) > 0:
        return None
    whose, value = ("the model", score.model) if score.original is None else ("the original", score.original)
    title = METRICS[score.metric].title
    figures = f"its {title} is {_shown(score, value.value)}, that of a constant answer {_shown(score, score.constant)}"
    return f"on these data, {whose} is no better than a constant answer: {figures}"


def _without_boxes(scores: Sequence[Score]) -> str | None:
    """Return a note if there are no boxes of the original to compare with."""
    if any(score.metric in _BOXES and isnan(score.model.value) for score in scores):
        return "the original finds no box with a score of at least 0.5 in these data, so there are none to compare"
    return None


def _shown(score: Score, value: float) -> str:
    return f"{value:.1%}" if score.share else f"{value:.3g}"


def _runners(
    models: Sequence[ModelProto], providers: Sequence[Provider], threads: int | None
) -> tuple[list[Runner], Followed, list[str]]:
    """Open a model and perhaps its original; return also what stands for outputs, and what both have in front."""
    found = [followed(model) for model in models]
    own = {value.name for value in models[0].graph.output}
    fronts = [n for n in found[0].fronts if n not in own and n in found[-1].fronts] if len(models) > 1 else []
    states = None, state_inputs(models[0])  # the original takes those that the pruned model lost positions of
    runners = [
        Runner(model, providers, threads, pruned, tensors=fronts, sized=found[0].ragged)
        for model, pruned in zip(models, states, strict=False)
    ]
    return runners, found[0], fronts


def recognize(
    model: ModelProto,
    dataset: Dataset,
    *,
    output: str | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
    threads: int | None = None,
) -> Task:
    """Return what a model is for, by its outputs and labels of a first batch; arguments are those of `evaluate`.

    Raises:
        DataError: the data can't be read or don't fit, or the task asked for doesn't (OP711).
        ModelError: the model can't be run.
    """
    for batch in dataset.batches(_FIRST):
        found = followed(model)
        outputs = Runner(model, providers, threads, sized=found.ragged)(batch)
        return _task(model, found, outputs, batch, dataset, output if output in outputs else None)
    raise DataError("OP702", "the data have no samples")


def _task(
    model: ModelProto,
    found: Followed,
    outputs: Mapping[str, Array],
    batch: Batch,
    dataset: Dataset,
    output: str | None,
) -> Task:
    """Return the task by a first batch; an output whose length depends on values has no scores of classes."""
    task = task_of(model, outputs, batch.labels, dataset, output, image_size(batch))
    if output is None and task.output in found.ragged:
        whole = {name: value for name, value in outputs.items() if name not in found.ragged}
        return task_of(model, whole, batch.labels, dataset, size=image_size(batch))
    return task


def _name(dataset: Dataset, start: int, sample: int) -> str:
    """Return the name of a sample in the batch that starts at a position of the data."""
    return dataset.name(start + sample)


def interface_difference(model: ModelProto, original: ModelProto) -> str | None:
    """Return how the names of a model's inputs or outputs differ from the original's; None if they don't."""
    constants = {t.name for m in (model, original) for t in m.graph.initializer}
    for what in ("input", "output"):
        mine, its = ([v.name for v in getattr(m.graph, what)] for m in (model, original))
        if set(mine).symmetric_difference(its) - constants:
            return f"the {what}s are {', '.join(mine)}, and the original's are {', '.join(its)}"
    return None


class _Meters:
    """The meters of all metrics, chosen by the first batch."""

    def __init__(self, first: BatchView, wanted: Sequence[str] | None) -> None:
        self.meters = [Meter(metric) for metric in choose(first, wanted)]
        self.not_finite = 0
        self.keeps = any(meter.metric.keeps for meter in self.meters)
        self._weights: list[NDArray[np.uint8]] = []
        self.answers = Answers()

    def add(self, batch: BatchView, weights: Floats) -> None:
        for meter in self.meters:
            meter.add(batch, weights)
        if self.keeps:
            self._weights.append(weights.astype(np.uint8))
        self.not_finite += batch.not_finite()
        self.answers.add(batch)

    def scores(self, confidence: float) -> tuple[Score, ...]:
        weights = np.concatenate(self._weights) if self.keeps else None
        scores = (meter.score(confidence, weights) for meter in self.meters)
        return tuple(replace(score, constant=self.answers.constant(score.metric)) for score in scores)
