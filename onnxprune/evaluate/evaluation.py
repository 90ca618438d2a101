"""Measuring a model on data, by itself and against its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
from onnx import ModelProto

from onnxprune._runtime import Provider
from onnxprune.data.batch import IGNORED, Array, Dataset
from onnxprune.data.functions import find_function, is_function_name
from onnxprune.errors import DataError, VerificationError
from onnxprune.evaluate.classes import classes_of, flat_labels, is_distribution
from onnxprune.evaluate.meter import Meter, Resampler, Score
from onnxprune.evaluate.metrics import Metric, View, agreement, cosine, kl, mean_iou, mse, top_k, user_metric
from onnxprune.evaluate.runner import Runner
from onnxprune.model import Source, load

METRICS = ("top1", "top5", "miou", "agreement", "kl", "mse", "cosine")
"""The names of the metrics."""

_LABELLED = ("top1", "top5", "miou")
_OF_CLASSES = (*_LABELLED, "agreement", "kl")
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
    wanted = None if metrics is None else [_known(name) for name in metrics]
    proto, reference = load(model).proto, None if against is None else load(against).proto
    if reference is not None:
        _check_interfaces(proto, reference)
    run = Runner(proto, providers, threads)
    run_original = None if reference is None else Runner(reference, providers, threads)
    resampler = Resampler(resamples, seed)
    judge: _Judge | None = None
    done = 0
    for samples in dataset.batches(batch):
        outputs = run(samples)
        originals = None if run_original is None else run_original(samples)
        if judge is None:
            judge = _Judge(outputs, originals, samples.labels, wanted, output)
        judge.add(outputs, originals, samples.labels, resampler.weights(samples.count), done)
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


class _Judge:
    """Meters of the metrics that are measured, chosen by what the first batch shows."""

    def __init__(
        self,
        outputs: dict[str, Array],
        originals: dict[str, Array] | None,
        labels: Array | None,
        wanted: Sequence[str] | None,
        output: str | None,
    ) -> None:
        self.output = _class_output(outputs, labels, output)
        self.not_finite = 0
        self._shifts = dict.fromkeys((-1, 0, 1), 0.0)
        self._judged = 0
        possible = self._possible(outputs, originals, labels)
        if wanted is None:
            names = list(possible)
            if not names:
                hint = "give labels, or the original model (against, --against)"
                raise DataError("OP711", "there is nothing to measure the model by", hint=hint)
        else:
            names = list(wanted)
        chosen: list[Metric] = []
        for name in names:
            if is_function_name(name):
                chosen.append(user_metric(name, find_function(name)))
            elif name in possible:
                chosen += possible[name]
            else:
                raise DataError("OP711", f"{name} can't be measured: {self._missing(name, originals, labels)}")
        self.meters = [Meter(metric) for metric in chosen]
        self._class_labels = any(metric.name in _LABELLED for metric in chosen)
