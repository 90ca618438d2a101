"""Measuring a model on data, by itself and against its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from onnx import ModelProto

from onnxprune.data.batch import IGNORED, Dataset
from onnxprune.errors import DataError, VerificationError
from onnxprune.evaluation.choice import check_name, choose
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.meter import Meter, Resampler, Score
from onnxprune.evaluation.runner import Runner
from onnxprune.evaluation.views import BatchView, class_output, view
from onnxprune.model.file import Source, load
from onnxprune.model.session import Provider

_SHIFT = 0.2  # of accuracy: so much better with another label_offset is no accident


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured.

    Attributes:
        samples: how many samples were judged.
        scores: the metrics' values.
        not_finite: for how many samples the model gave NaN or infinite values; they count as wrong, and aren't part
            of mean distances.
        confidence: coverage of the intervals.
        resamples: how many values intervals by resampling come from.
        seed: seed of resampling.
        providers: the execution providers asked for.
        notes: what is worth knowing.
    """

    samples: int
    scores: tuple[Score, ...]
    not_finite: int
    confidence: float
    resamples: int
    seed: int
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> Score:
        """Give the score of a metric (of the first output, if it is about several).

        Raises:
            DataError: it wasn't measured (OP711).
        """
        for score in self.scores:
            if score.metric == metric:
                return score
        measured = ", ".join(score.metric for score in self.scores)
        raise DataError("OP711", f"{metric!r} wasn't measured", hint=f"measured were: {measured}")


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
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model on data, in one pass and bounded memory.

    Args:
        model: the model.
        dataset: samples that fit it.
        against: the original; both are run on the same samples, and what it makes of them is compared.
        metrics: names out of `METRICS`, or "module:function" of a user's metric; by default, whatever the labels,
            the output and the original allow.
        output: the output that tells classes; by default, the first that can be read so.
        providers: execution providers in order of preference.
        batch: samples at a time; a model of fixed batch size is run as it demands.
        confidence: coverage of the intervals.
        resamples: how many values intervals by resampling come from.
        seed: seed of resampling.
        threads: threads within an operator; ONNX Runtime's default if None.
        progress: told how many samples are done, after each batch.

    Raises:
        DataError: the data can't be read or don't fit (OP701 to OP710), or a metric can't be measured (OP711).
        ModelError: a model can't be loaded or run.
        UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        VerificationError: the two models have different outputs (OP503).
    """
    for name in metrics or ():
        check_name(name)
    proto, reference = load(model).proto, None if against is None else load(against).proto
    if reference is not None:
        _check_interfaces(proto, reference)
    run = Runner(proto, providers, threads)
    run_original = None if reference is None else Runner(reference, providers, threads)
    resampler, judge, done = Resampler(resamples, seed), None, 0
    for samples in dataset.batches(batch):
        outputs, labels = run(samples), samples.labels
        if judge is None:
            output = class_output(outputs, labels, output)
        named = partial(_name, dataset, done)
        original = None if run_original is None else view(run_original(samples), labels, output, named)
        seen = view(outputs, labels, output, named, original)
        judge = judge or _Judge(seen, metrics)
        judge.add(seen, resampler.weights(samples.count))
        done += samples.count
        if progress is not None:
            progress(done)
    if judge is None:
        raise DataError("OP702", "the data have no samples")
    return Evaluation(
        samples=done,
        scores=tuple(meter.score(confidence) for meter in judge.meters),
        not_finite=judge.not_finite,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        providers=tuple(p if isinstance(p, str) else p[0] for p in providers),
        notes=judge.notes(),
    )


def _name(dataset: Dataset, start: int, sample: int) -> str:
    """Name a sample of the batch that starts at a position of the data."""
    return dataset.name(start + sample)


def _check_interfaces(model: ModelProto, original: ModelProto) -> None:
    """Refuse to compare models whose inputs or outputs have other names."""
    for what in ("input", "output"):
        mine, its = ([v.name for v in getattr(m.graph, what)] for m in (model, original))
        constants = {t.name for m in (model, original) for t in m.graph.initializer}
        if set(mine).symmetric_difference(its) - constants:
            cause = f"the {what}s are {', '.join(mine)}, and the original's are {', '.join(its)}"
            raise VerificationError("OP503", cause)


class _Judge:
    """Meters of the metrics that are measured, chosen by what the first batch shows."""

    def __init__(self, first: BatchView, wanted: Sequence[str] | None) -> None:
        self.meters = [Meter(metric) for metric in choose(first, wanted)]
        self.not_finite = 0
        self._shifted = dict.fromkeys((-1, 0, 1), 0)
        self._judged = 0

    def add(self, batch: BatchView, weights: Floats) -> None:
        for meter in self.meters:
            meter.add(batch, weights)
        self.not_finite += batch.not_finite()
        if batch.flat is not None and batch.classes is not None:
            judged = batch.flat != IGNORED
            self._judged += int(judged.sum())
            for offset in self._shifted:
                self._shifted[offset] += int((judged & (batch.classes.predicted == batch.flat + offset)).sum())

    def notes(self) -> tuple[str, ...]:
        """Tell what is suspicious."""
        best = max(self._shifted, key=self._shifted.__getitem__)
        if self._judged and self._shifted[best] - self._shifted[0] > _SHIFT * self._judged:
            share = self._shifted[best] / self._judged
            return (f"labels look shifted: with {best:+d} to label_offset, {share:.1%} would be right",)
        return ()
