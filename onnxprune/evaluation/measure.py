"""Evaluation of a model on data, alone and against its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import notebook
from onnxprune.data.batch import Array, Batch, Dataset
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.evaluation.answers import Answers
from onnxprune.evaluation.choice import check_name, choose
from onnxprune.evaluation.disagreement import Disagreements, Example
from onnxprune.evaluation.intervals import Estimate, Floats, paired_proportions, percentile, wilson
from onnxprune.evaluation.metrics import Metric
from onnxprune.evaluation.runner import Runner
from onnxprune.evaluation.tasks import Task, task_of
from onnxprune.evaluation.view import BatchView, image_size, view
from onnxprune.model.file import Source, load
from onnxprune.model.graph import extract
from onnxprune.model.session import Provider
from onnxprune.model.states import state_inputs
from onnxprune.progress import Progress, silent
from onnxprune.settings.evaluation import METRICS, TaskName, higher_is_better, judging
from onnxprune.shapes.runnable import operators, runnable_front
from onnxprune.trace.outputs import Followed, followed


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's values.

    Attributes:
        metric: the metric's name.
        output: the output that it measures, if it is one of several.
        share: whether it is a fraction of samples or positions, from 0 to 1.
        model: the model's value.
        original: the original's value, for metrics of a single model.
        difference: model minus original, from the same samples.
        lost: of the samples that the original gets right, the share that the model gets wrong: the rate of negative
            flips (S. Yan et al., "Positive-congruent training", CVPR 2021).
        constant: the best value that a constant answer has on these data, if that is known.
    """

    metric: str
    output: str | None
    share: bool
    model: Estimate
    original: Estimate | None = None
    difference: Estimate | None = None
    lost: Estimate | None = None
    constant: float | None = None

    @property
    def key(self) -> str:
        """The metric's name, and of one of several outputs also the output's: "top1" or "mse:boxes"."""
        return self.metric if self.output is None else f"{self.metric}:{self.output}"


class Resampler:
    """Draws bootstrap weights for a stream of samples.

    In a bootstrap of many samples, the number of times that a sample is drawn is nearly Poisson distributed and
    independent of the others, so resampled sums need no stored samples. N. Chamandy, O. Muralidharan, A. Najmi and
    S. Naidu, Estimating uncertainty for massive data streams, Google technical report (2012).
    """

    def __init__(self, resamples: int, seed: int) -> None:
        """Set the number of resampled values and the seed."""
        self.resamples = resamples
        self._rng = np.random.default_rng(seed)

    def weights(self, samples: int) -> Floats:
        """Return the weights of the next samples, [samples, resamples]."""
        return self._rng.poisson(1.0, (samples, self.resamples)).astype(np.float64)


class Meter:
    """Running sums of a metric, of the model and, for metrics of a single model, of the original.

    Metrics that don't add up keep what they need of each sample until the end.
    """

    def __init__(self, metric: Metric) -> None:
        """Start with empty sums."""
        self.metric = metric
        self._mine, self._original = _Tally(), _Tally()
        self._kept: tuple[list[Any], list[Any]] = [], []
        self._gains = self._losses = 0.0
        self._binary = metric.share and higher_is_better(metric.name)

    def add(self, view: BatchView, weights: Floats) -> None:
        """Add a batch, with its bootstrap weights."""
        rows = self.metric.rows(view)
        reference = None if not self.metric.paired or view.original is None else self.metric.rows(view.original)
        if self.metric.keeps:
            self._kept[0].extend(rows)
            self._kept[1].extend([] if reference is None else reference)
        else:
            self._add(rows, reference, weights)

    def _add(self, rows: Floats, reference: Floats | None, weights: Floats) -> None:
        self._mine.add(rows, weights)
        self._binary = self._binary and rows.shape[1] == 2 and bool((rows[:, 1] <= 1).all())
        if reference is not None:
            self._original.add(reference, weights)
            change = (rows - reference)[:, 0]
            self._gains += float(np.maximum(change, 0).sum())
            self._losses += float(np.maximum(-change, 0).sum())

    def score(self, confidence: float, weights: NDArray[np.uint8] | None) -> Score:
        """Return the values with their intervals: Wilson's for fractions of samples, else the bootstrap's.

        Args:
            confidence: coverage of the intervals.
            weights: the bootstrap weights of all samples, for metrics that don't add up.
        """
        metric = self.metric
        mine, its = self._kept
        if metric.finish is not None and weights is not None:
            self._add(metric.finish(mine), metric.finish(its) if its else None, weights.astype(np.float64))
        if metric.statistic is not None and weights is not None:
            draws = weights.astype(np.float64)
            values = [(self._once(kept), metric.statistic(kept, draws)) for kept in self._kept if kept]
        else:
            assert metric.value is not None
            tallies = (self._mine, self._original)
            values = [(float(metric.value(t.sums)), metric.value(t.resampled)) for t in tallies if t.sums is not None]
        original = difference = lost = None
        model = self._estimate(self._mine, *values[0], confidence)
        if len(values) > 1:
            original = self._estimate(self._original, *values[1], confidence)
            if self._binary and self._mine.sums is not None:
                difference = paired_proportions(self._gains, self._losses, float(self._mine.sums[1]), confidence)
                assert self._original.sums is not None
                lost = wilson(self._losses, float(self._original.sums[0]), confidence)
            else:
                change = values[0][1] - values[1][1]
                difference = percentile(values[0][0] - values[1][0], change, confidence)
        return Score(metric.name, metric.output, metric.share, model, original, difference, lost)

    def _once(self, kept: list[Any]) -> float:
        assert self.metric.statistic is not None
        return float(self.metric.statistic(kept, np.ones((len(kept), 1)))[0])

    def _estimate(self, tally: _Tally, value: float, resampled: Floats, confidence: float) -> Estimate:
        if self._binary and tally.sums is not None:
            hits, trials = tally.sums
            return wilson(float(hits), float(trials), confidence)
        return percentile(value, resampled, confidence)


class _Tally:
    """Sums of rows, and of resampled rows."""

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


_BOXES = ("boxes_original", "map_original")
_FIRST = 32  # samples that a task is recognized by


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's metrics on data.

    Attributes:
        samples: number of samples.
        scores: the metrics' values.
        not_finite: number of samples for which the model output NaN or infinity. They count as wrong, and are excluded
            from mean distances.
        confidence: coverage of the intervals.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
        providers: the requested execution providers.
        notes: remarks, such as on labels that look shifted.
        task: what the model is for; None if that isn't known.
        recognized: what the task was recognized by.
        doubts: those of the notes that speak against the data: labels that look shifted, or a metric in which the
            original, or the model if there is none, isn't better than a constant answer.
        examples: samples on which the model and the original disagree most, if any were to be kept.
    """

    samples: int
    scores: tuple[Score, ...]
    not_finite: int
    confidence: float
    resamples: int
    seed: int
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    task: TaskName | None = None
    recognized: str = ""
    doubts: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    def _repr_html_(self) -> str:
        """Return a table of the scores with their intervals."""
        rows = [[_title(s), _figures(s.model, s.share), _figures(s.original, s.share), _change(s)] for s in self.scores]
        note = f"{self.samples:,} samples, intervals of {self.confidence:.0%}"
        return notebook.table("evaluation", ["", "model", "original", "change"], rows, "; ".join([note, *self.notes]))

    def __getitem__(self, metric: str) -> Score:
        """Return the score of a metric (of the first output, if there are several).

        Raises:
            DataError: it wasn't measured (OP711).
        """
        for score in self.scores:
            if score.metric == metric:
                return score
        measured = ", ".join(score.metric for score in self.scores)
        raise DataError("OP711", f"{metric!r} wasn't measured", hint=f"measured: {measured}")


def _title(score: Score) -> str:
    title = METRICS[score.metric].title if score.metric in METRICS else score.metric
    return title if score.output is None else f"{title}, {score.output}"


def _figures(found: Estimate | None, share: bool) -> str:
    if found is None:
        return ""
    if share:
        return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"


def _change(score: Score) -> str:
    found = score.difference
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} points" if score.share else f"{found.value:+.3g}"


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
    seen_as = partial(view, fronts=fronts, behind=found.replaced)
    resampler, meters, task, done = Resampler(resamples, seed), None, None, 0
    apart = Disagreements(examples)
    for samples in dataset.batches(batch):
        outputs = run(samples)
        its = None if run_original is None else outputs if run_original is run else run_original(samples)
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
        progress("evaluate", done, dataset.known_length)
    if meters is None or task is None:
        raise DataError("OP702", "the data have no samples")
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
        notes=tuple(filter(None, (note, found.note() if fronts else None, *doubts))),
        task=task.name,
        recognized=str(task),
        doubts=doubts,
        examples=apart.found(dataset),
    )


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


def above_constant(score: Score) -> float:
    """Return how far the original, or the model if there is none, is above a constant answer; infinite if unknown."""
    if score.constant is None:
        return float("inf")
    gain = (score.original or score.model).value - score.constant
    return gain if higher_is_better(score.metric) else -gain


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
        self._keeps = any(meter.metric.keeps for meter in self.meters)
        self._weights: list[NDArray[np.uint8]] = []
        self.answers = Answers()

    def add(self, batch: BatchView, weights: Floats) -> None:
        for meter in self.meters:
            meter.add(batch, weights)
        if self._keeps:
            self._weights.append(weights.astype(np.uint8))
        self.not_finite += batch.not_finite()
        self.answers.add(batch)

    def scores(self, confidence: float) -> tuple[Score, ...]:
        weights = np.concatenate(self._weights) if self._keeps else None
        scores = (meter.score(confidence, weights) for meter in self.meters)
        return tuple(replace(score, constant=self.answers.constant(score.metric)) for score in scores)
