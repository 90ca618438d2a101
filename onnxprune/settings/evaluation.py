"""Tasks, and the metrics that each is measured by: the facts that evaluation, training, searches and reports read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.settings.declare import Settings, setting

TaskName = Literal[
    "classification", "binary", "multilabel", "regression", "segmentation", "detection", "ctc", "embedding"
]


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """What is known of a metric apart from how it is computed.

    Attributes:
        title: its name in tables.
        tasks: the tasks that it measures; empty for a distance of outputs, which fits every task.
        needs: what the model's outputs are compared with: the labels, or the original model's outputs.
        higher: whether higher is better.
        share: whether it is a share, shown in percent.
        judges: whether a drop of it limits pruning (`max_drop`) and selects a model in training.
        constant: its value for a constant answer, where that is the same for all data.
    """

    title: str
    tasks: tuple[TaskName, ...]
    needs: Literal["labels", "original"] = "labels"
    higher: bool = True
    share: bool = True
    judges: bool = True
    constant: float | None = None


def _facts(title: str, *tasks: TaskName, **rest: Any) -> MetricFacts:
    return MetricFacts(title, tasks, **rest)


def _original(title: str, *tasks: TaskName, **rest: Any) -> MetricFacts:
    return MetricFacts(title, tasks, "original", **rest)


METRICS: Mapping[str, MetricFacts] = {
    "top1": _facts("top-1", "classification", "segmentation"),
    "top5": _facts("top-5", "classification", judges=False),
    "miou": _facts("mean IoU", "segmentation"),
    "accuracy": _facts("accuracy", "binary", "multilabel"),
    "auc": _facts("ROC AUC", "binary", "multilabel", constant=0.5),
    "ap": _facts("average precision", "binary", "multilabel"),
    "f1": _facts("F1", "binary", "multilabel"),
    "r2": _facts("R2", "regression", share=False, constant=0),
    "mae": _facts("mean absolute error", "regression", higher=False, share=False, judges=False),
    "rmse": _facts("root mean square error", "regression", higher=False, share=False, judges=False),
    "wer": _facts("word error rate", "ctc", higher=False, constant=1),
    "cer": _facts("character error rate", "ctc", higher=False, constant=1),
    "map": _facts("mAP 0.50:0.95 (COCO)", "detection", constant=0),
    "map50": _facts("mAP 0.50 (COCO)", "detection", judges=False),
    "map_voc": _facts("mAP 0.50 (VOC)", "detection", judges=False),
    "recall1": _facts("recall@1", "embedding"),
    "recall5": _facts("recall@5", "embedding", judges=False),
    "spearman": _facts("Spearman correlation", "embedding", share=False, constant=0),
    "agreement": _original("agreement", "classification", "segmentation", "binary", "multilabel"),
    "miou_original": _original("mean IoU, original's masks", "segmentation"),
    "cer_original": _original("character error rate, original's text", "ctc", higher=False, constant=1),
    "boxes_original": _original("boxes matched, original's", "detection", judges=False),
    "map_original": _original("mAP 0.50:0.95, original's boxes", "detection", constant=0),
    "neighbors": _original("nearest-neighbor agreement", "embedding"),
    "kl": _original(
        *("KL divergence, nats", "classification", "segmentation", "binary", "multilabel"),
        higher=False,
        share=False,
        judges=False,
    ),
    "mse": _original("mean squared error", higher=False, share=False, judges=False),
    "nmse": _original("squared error, of variance", higher=False, share=False, constant=1),
    "cosine": _original("cosine of outputs", share=False, judges=False),
}
"""The metrics by name. A drop is measured in the first of these that judges and can be measured."""


def judging(measured: Collection[str]) -> str | None:
    """Return the metric to measure a drop in, among those measured; None if none is fit for it."""
    return next((name for name, facts in METRICS.items() if facts.judges and name in measured), None)


def title_of(metric: str) -> str:
    """Return the name of a metric in tables; a user's metric keeps its own."""
    return METRICS[metric].title if metric in METRICS else metric


def higher_is_better(metric: str) -> bool:
    """Whether higher values of a metric are better; of a user's metric they are."""
    return metric not in METRICS or METRICS[metric].higher


@dataclass(frozen=True, slots=True)
class TaskSettings(Settings):
    """What the model's outputs and the labels mean."""

    task: Literal["auto", TaskName] = setting(
        "auto",
        "What the model is for; auto recognizes it from outputs and labels, text by `alphabet`, and says by what.",
    )
    postprocess: Any = setting(
        None,
        "Function that turns a dictionary of outputs into what the task takes: for detection, for each sample an array "
        "of boxes [m, 6] (x1, y1, x2, y2, score, class); else the output to evaluate.",
        metavar="MODULE:FUNCTION",
    )
    alphabet: Any = setting(
        None,
        "For ctc: text file with the symbol of each class in a line, in the model's order; an empty line is a space.",
        metavar="FILE.txt",
    )
    output_name: str | None = setting(
        None,
        "The output that the labels are for, and that accuracy is measured by.",
        metavar="NAME",
        shown="found by its shape",
    )
    blank: int = setting(0, "For ctc: the class of the blank symbol; -1 is the last class.", at_least=-1)
