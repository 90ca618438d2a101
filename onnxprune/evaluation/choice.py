"""The choice of metrics that a task and a batch allow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxprune.errors import DataError
from onnxprune.errors.words import did_you_mean
from onnxprune.evaluation import by_task, matching, ranked
from onnxprune.evaluation.metrics import (
    Metric,
    agreement_rows,
    distance,
    iou_rows,
    kl,
    mean,
    mean_iou,
    top_k_rows,
    user_metric,
)
from onnxprune.evaluation.tasks import CLASSES
from onnxprune.evaluation.view import BatchView
from onnxprune.runtime.functions import find_function, is_function_name
from onnxprune.settings.evaluation import METRICS

_BY_COCO = ("map", "map50", "map_original")
_UNCLEAR = "there is no output, or more than one, with a score for each class"
_ONLY_INDICES = "the model outputs only the predicted class"


def made(name: str) -> Metric:
    """Return a metric of the output that the task is about, by its name."""
    errors, text, kept = by_task.error_rows, by_task.text_rows, by_task.kept_boxes
    r2 = by_task.R2()
    mean_ap = by_task.MeanAveragePrecision
    found = [
        Metric("top1", partial(top_k_rows, 1), mean),
        Metric("top5", partial(top_k_rows, 5), mean),
        Metric("miou", partial(iou_rows, False), mean_iou),
        Metric("miou_original", partial(iou_rows, True), mean_iou),
        Metric("agreement", agreement_rows, mean),
        Metric("accuracy", partial(top_k_rows, 1), mean),
        Metric("auc", by_task.kept_decisions, statistic=partial(by_task.macro, ranked.auc)),
        Metric("ap", by_task.kept_decisions, statistic=partial(by_task.macro, ranked.average_precision)),
        Metric("f1", by_task.f1_rows, by_task.f1_value),
        Metric("r2", r2.rows, r2.value),
        Metric("mae", partial(errors, 1), mean),
        Metric("rmse", partial(errors, 2), lambda sums: np.sqrt(mean(sums))),
        Metric("wer", partial(text, True, False), mean),
        Metric("cer", partial(text, False, False), mean),
        Metric("cer_original", partial(text, False, True), mean),
        Metric("map", partial(kept, False), statistic=mean_ap("coco")),
        Metric("map50", partial(kept, False), statistic=mean_ap("coco50")),
        Metric("map_voc", partial(kept, False), statistic=mean_ap("voc")),
        Metric("boxes_original", by_task.matched_boxes, mean),
        Metric("map_original", partial(kept, True), statistic=mean_ap("coco")),
        Metric("recall1", by_task.kept_vectors, mean, finish=partial(by_task.recall_rows, 1)),
        Metric("recall5", by_task.kept_vectors, mean, finish=partial(by_task.recall_rows, 5)),
        Metric("spearman", by_task.kept_vectors, statistic=by_task.sts),
        Metric("neighbors", by_task.kept_both, mean, finish=by_task.neighbor_rows),
    ]
    return next(metric for metric in found if metric.name == name)


def check_name(name: str) -> None:
    """Check the name of a metric.

    Raises:
        DataError: it is neither a known name nor of the form module:function (OP711).
    """
    if name not in METRICS and not is_function_name(name):
        hint = did_you_mean(name.lower(), METRICS) or f"metrics: {', '.join(METRICS)}, or module:function"
        raise DataError("OP711", f"there is no metric {name!r}", hint=hint)


def choose(first: BatchView, wanted: Sequence[str] | None) -> list[Metric]:
    """Return the metrics to measure.

    Args:
        first: the first batch.
        wanted: names of metrics, or None for all that the task and the batch allow.

    Raises:
        DataError: a metric can't be measured, or none can (OP711); a function can't be imported (OP710).
        UsageError: a metric needs a package that isn't installed (OP605).
    """
    if wanted is None:
        wanted = [name for name in METRICS if _lacks(name, first) is None and _sensible(name, first)]
        if "map_original" in wanted and not matching.has_pycocotools():
            wanted.remove("map_original")  # boxes_original says much the same
    if not wanted:
        hint = "give data with labels, or the original model (`against`)"
        cause = f"there is nothing to measure the model by; {first.task}"
        raise DataError("OP711", cause, hint=hint)
    chosen: list[Metric] = []
    for name in dict.fromkeys(wanted):
        if is_function_name(name):
            chosen.append(user_metric(name, find_function(name)))
        elif lack := _lacks(name, first):
            raise DataError("OP711", f"{name} can't be measured: {lack}")
        elif not METRICS[name].tasks:
            names = _comparable(first)
            chosen += [distance(name, output, named=len(names) > 1) for output in names]
        else:
            if name in _BY_COCO:
                matching.pycocotools()  # said now, not once all samples are done
            chosen.append(_divergence(first) if name == "kl" else made(name))
    return chosen


def _divergence(first: BatchView) -> Metric:
    assert first.original is not None and first.original.classes is not None
    return kl(first.original.classes.scores)


def _comparable(first: BatchView) -> list[str]:
    """Return the floating-point tensors whose numbers go with the original's: boxes after NMS don't."""
    selected = first.task.name == "detection" and (first.task.form is None or not first.task.form.raw)
    its = {} if first.original is None else first.original.compared
    alike = [name for name, value in first.compared.items() if name in its and its[name].shape == value.shape]
    return [name for name in alike if not (selected and name in first.outputs)]


def _lacks(name: str, first: BatchView) -> str | None:
    """Return what a metric lacks, None if nothing."""
    facts, task = METRICS[name], first.task
    if facts.needs == "labels" and first.labels is None:
        return "the data have no labels"
    if facts.needs == "original" and first.original is None:
        return "it compares with the original model, which isn't given (`against`)"
    if not facts.tasks:
        return None if _comparable(first) else "no output has numbers that go with the original's one by one"
    if task.name not in facts.tasks and not (task.name in CLASSES and set(facts.tasks) & set(CLASSES)):
        if task.name is None and (set(facts.tasks) & set(CLASSES)):
            return _UNCLEAR
        return f"it is for {' or '.join(facts.tasks)}, and the task is another: {task}; `task` says what it is"
    if "classification" in facts.tasks or "segmentation" in facts.tasks or "binary" in facts.tasks:
        return _lacks_classes(name, first)
    if task.name == "ctc" and name == "wer" and first.labels is not None:
        return None if task.alphabet is not None else "words need the model's alphabet (`alphabet`)"
    if task.name == "embedding" and first.labels is not None and facts.needs == "labels":
        pairs = first.labels.ndim == 2 and first.labels.shape[1] == 2
        if name == "spearman" and not pairs:
            return "it takes labels [n, 2]: the number of the pair that a sample is in, and the pair's similarity"
        return "labels [n, 2] are pairs and their similarity, not classes" if pairs and name != "spearman" else None
    return None


def _lacks_classes(name: str, first: BatchView) -> str | None:
    classes = first.classes
    if METRICS[name].needs == "labels":
        if first.flat is None or classes is None:
            return f"{_UNCLEAR}, in a shape that matches the labels"
        return _ONLY_INDICES if name == "top5" and classes.scores is None else None
    if classes is None:
        return _UNCLEAR
    if first.original is not None:
        its = first.original.classes
        if its is None or its.predicted.shape != classes.predicted.shape:
            return "the original's output has another shape"
    return _ONLY_INDICES if name == "kl" and classes.scores is None else None


def _sensible(name: str, first: BatchView) -> bool:
    classes, task = first.classes, first.task.name
    dense = classes is not None and classes.predicted.shape[1] > 1
    if name == "top5":
        return classes is not None and (classes.count or 0) > 5 and not dense
    if name in ("miou", "miou_original"):
        return dense and (name == "miou" or task == "segmentation")
    if name == "nmse":  # where outputs may differ in scale, or where nothing else tells how much is lost
        return task in (None, "regression", "detection") or len(_comparable(first)) > 1
    return True
