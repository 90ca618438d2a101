"""Boxes that match, and average precision over them; what boxes are is said in `onnxprune.evaluation.boxes`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.evaluation.intervals import Floats

Bools = NDArray[np.bool_]

_NO_IDS = np.zeros(0, np.int64)


def iou(a: Floats, b: Floats) -> Floats:
    """Return the intersection over union of boxes (x1, y1, x2, y2), [a, b]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), axis=1) for x in (a, b)]
    either = areas[0][:, None] + areas[1][None, :] - both
    result: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return result


@dataclass(frozen=True, slots=True)
class Matches:
    """The boxes found of one class, best first, and whether they are right.

    Attributes:
        image: the sample of each box.
        right: whether it matches a true box, [thresholds, boxes].
        counted: whether it is evaluated, likewise.
        truth: the sample of each true box that is evaluated.
    """

    image: NDArray[np.int64]
    right: Bools
    counted: Bools
    truth: NDArray[np.int64]

    def average_precision(self, weights: Floats, points: int | None) -> Floats:
        """Return average precision for each draw, averaged over thresholds; NaN where a draw has no true box.

        Args:
            weights: how often each sample was drawn, [samples, draws].
            points: the number of recalls at which precision is averaged; None for the area under the curve.
        """
        total = weights[self.truth].sum(axis=0)
        drawn = weights[self.image]
        values = np.zeros((len(self.right), weights.shape[1]))
        for t, (right, counted) in enumerate(zip(self.right, self.counted, strict=True)):
            hits = np.cumsum(drawn * (right & counted)[:, None], axis=0)
            listed = np.cumsum(drawn * counted[:, None], axis=0)
            precision = np.divide(hits, listed, out=np.zeros_like(hits), where=listed > 0)
            precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            recall = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
            if points is None:
                values[t] = (np.diff(recall, axis=0, prepend=0.0) * precision).sum(axis=0)
                continue
            wanted = np.linspace(0, 1, points)
            for draw in range(weights.shape[1]):
                at = np.searchsorted(recall[:, draw], wanted, side="left")
                values[t, draw] = precision[at[at < len(precision)], draw].sum() / points
        return np.where(total > 0, values.mean(axis=0), np.nan)


def pycocotools() -> tuple[Any, Any]:
    """Return pycocotools' classes COCO and COCOeval.

    Raises:
        UsageError: it isn't installed (OP605).
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        hint = "pip install 'onnxprune[metrics]', or measure map_voc"
        raise UsageError("OP605", "mAP as of COCO needs pycocotools, which isn't installed", hint=hint) from error
    return COCO, COCOeval


def has_pycocotools() -> bool:
    """Whether pycocotools is installed."""
    try:
        pycocotools()
    except UsageError:
        return False
    return True


def coco_matches(found: Sequence[Floats], truth: Sequence[Floats]) -> list[Matches]:
    """Match boxes at IoU 0.50 to 0.95 in steps of 0.05, the best 100 of each sample, with pycocotools.

    T.-Y. Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; https://cocodataset.org/#detection-eval.

    Raises:
        UsageError: pycocotools isn't installed (OP605).
    """
    COCO, COCOeval = pycocotools()
    classes = _classes(truth)
    images = [{"id": i} for i in range(len(truth))]
    boxes: list[dict[str, Any]] = []
    for image, rows in enumerate(truth):
        for label, x1, y1, x2, y2, crowd in rows.tolist():
            box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            entry = {"image_id": image, "category_id": int(label), "bbox": box, "area": area, "iscrowd": int(crowd)}
            boxes.append({"id": len(boxes) + 1, **entry})
    dataset = COCO()
    dataset.dataset = {"images": images, "annotations": boxes, "categories": [{"id": label} for label in classes]}
    listed = np.concatenate([np.insert(mine, 0, image, axis=1) for image, mine in enumerate(found)])
    listed[:, 3:5] -= listed[:, 1:3]
    if not len(listed) or not classes:
        return [Matches(_NO_IDS, _none(10), _none(10), _images_of(truth, label)) for label in classes]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        dataset.createIndex()
        judge = COCOeval(dataset, dataset.loadRes(listed), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    result = []
    for k, label in enumerate(classes):
        seen = [(i, e) for i, e in enumerate(judge.evalImgs[k * len(images) : (k + 1) * len(images)]) if e is not None]
        scores = np.concatenate([e["dtScores"] for _, e in seen]) if seen else np.zeros(0)
        order = np.argsort(-scores, kind="mergesort")
        where = np.repeat([i for i, _ in seen], [len(e["dtScores"]) for _, e in seen]).astype(np.int64)
        right = np.concatenate([e["dtMatches"] > 0 for _, e in seen], axis=1) if seen else _none(10)
        ignored = np.concatenate([e["dtIgnore"] > 0 for _, e in seen], axis=1) if seen else _none(10)
        result.append(Matches(where[order], right[:, order], ~ignored[:, order], _images_of(truth, label)))
    return result


def voc_matches(found: Sequence[Floats], truth: Sequence[Floats]) -> list[Matches]:
    """Match each box with the true box of its class that it overlaps most, at an IoU of at least 0.5.

    M. Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV 88 (2010): a second box for the same
    true box is wrong. Coordinates are continuous, without the devkit's extra pixel.
    """
    result = []
    for label in _classes(truth):
        images, scores, right, counted = [], [], [], []
        for image, (mine, true) in enumerate(zip(found, truth, strict=True)):
            true = true[true[:, 0] == label]
            mine = mine[mine[:, 5] == label]
            mine = mine[np.argsort(-mine[:, 4], kind="stable")]
            overlaps, taken = iou(mine[:, :4], true[:, 1:5]), set[int]()
            for row, overlap in zip(mine, overlaps, strict=True):
                best = int(overlap.argmax()) if len(true) else -1
                hit = best >= 0 and overlap[best] >= 0.5
                images.append(image)
                scores.append(row[4])
                counted.append(not (hit and true[best, 5]))
                right.append(hit and best not in taken)
                if hit:
                    taken.add(best)
        order = np.argsort(-np.array(scores), kind="stable")
        result.append(
            Matches(
                np.array(images, np.int64)[order],
                np.array(right, bool)[None, order],
                np.array(counted, bool)[None, order],
                _images_of(truth, label),
            )
        )
    return result


def mean_average_precision(matches: Sequence[Matches], weights: Floats, points: int | None = 101) -> Floats:
    """Return the mean of average precision over classes that have true boxes; NaN if none has."""
    values = [m.average_precision(weights, points) for m in matches]
    if not values:
        return np.full(weights.shape[1], np.nan)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return mean


def matched(found: Floats, original: Floats, least: float = 0.5) -> tuple[int, int]:
    """Return how many boxes of two models match, those of both counted, and how many there are.

    Boxes match if they have one class and an IoU of at least 0.5. The ratio is the F1 score, also known as Dice's
    coefficient; it is the same in both directions.

    Args:
        found: boxes of a sample.
        original: those of the other model.
        least: the least score of the boxes that count.
    """
    mine, truth = found[found[:, 4] >= least], as_truth([original], least)[0]
    matches = sum(int(m.right.sum()) for m in voc_matches([mine], [truth]))
    return 2 * matches, len(mine) + len(truth)


def as_truth(found: Sequence[Floats], least: float = 0.5) -> list[Floats]:
    """Return boxes found with at least a score as true boxes."""
    sure = [rows[rows[:, 4] >= least] for rows in found]
    return [np.column_stack([rows[:, 5], rows[:, :4], np.zeros(len(rows))]) for rows in sure]


def _classes(truth: Sequence[Floats]) -> list[int]:
    return sorted({int(label) for rows in truth for label in rows[:, 0]})


def _images_of(truth: Sequence[Floats], label: int) -> NDArray[np.int64]:
    counts = [int(((rows[:, 0] == label) & (rows[:, 5] == 0)).sum()) for rows in truth]
    return np.repeat(np.arange(len(truth)), counts)


def _none(thresholds: int) -> Bools:
    return np.zeros((thresholds, 0), bool)
