"""Boxes: how a detector's outputs hold them.

Boxes found are arrays [m, 6]: x1, y1, x2, y2, score, class. True boxes are [m, 6]: class, x1, y1, x2, y2, and 1 if the
box isn't to be evaluated (a crowd, or difficult). Both are in pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx

from onnxprune.data.batch import IGNORED, Array
from onnxprune.errors import DataError
from onnxprune.evaluation.intervals import Floats
from onnxprune.model.session import run, session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FORMS = (
    "known are boxes, scores and labels of matching names after NMS, one array [n, m, 6] or [m, 7], the raw output of "
    "YOLOv8 [n, 4 + classes, anchors], YOLOv5 [n, anchors, 85] or YOLOX [n, cells, 5 + classes], outputs of YuNet, and "
    "corners [n, anchors, 4] with probabilities [n, anchors, 1 + classes] as of SSD"
)
_POSTPROCESS = "give a function that returns boxes: `postprocess`"
_CONFIDENCE, _OVERLAP, _MOST = 0.001, 0.7, 300  # of non-maximum suppression, as in Ultralytics' validation
_SUPPRESSION = f"""<ir_version: 8, opset_import: ["" : 13]>
suppression (float[1,N,4] boxes, float[1,C,N] scores) => (int64[M,3] kept)
<int64 most = {{{_MOST}}}, float overlap = {{{_OVERLAP}}}, float least = {{{_CONFIDENCE}}}>
{{ kept = NonMaxSuppression(boxes, scores, most, overlap, least) }}"""
_STRIDES = (8, 16, 32)  # pixels between the cells of the levels of detectors without anchors
_ORDERED = 0.95  # share of rows that are corners in order
_LOGARITHM = 10.0  # largest logarithm of a box's size in cells
_ANCHORS = 16  # fewest boxes of an output before non-maximum suppression


@dataclass(frozen=True, slots=True)
class Form:
    """How outputs hold boxes.

    Attributes:
        kind: the form.
        names: the outputs, in the order that the form takes them.
        text: what a message says.
    """

    kind: Literal[
        "corners", "tensorflow", "rows", "rows-class-first", "batched", "yolov8", "yolov5", "yolox", "yunet", "ssd"
    ]
    names: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """Return what a message says."""
        return self.text

    @property
    def raw(self) -> bool:
        """Whether the outputs are those before non-maximum suppression, in a fixed order."""
        return self.kind.startswith("yolo") or self.kind in ("yunet", "ssd")

    def read(self, outputs: Mapping[str, Array], count: int, size: tuple[int, int] | None) -> list[Floats]:
        """Return the boxes of each sample.

        Args:
            outputs: the outputs.
            count: number of samples.
            size: height and width of the model's input, for boxes that are relative to it.

        Raises:
            DataError: the outputs have another form (OP711).
        """
        given = [np.asarray(outputs[name], np.float64) for name in self.names]
        if self.kind in ("corners", "tensorflow"):
            return self._separate(*given, count=count, size=size)
        if self.kind == "ssd":
            boxes, scores = given
            return [_kept(rows, own[:, 1:]) for rows, own in zip(boxes * _scale(boxes, size), scores, strict=True)]
        if self.kind == "yunet":
            levels = len(given) // 3
            seen = [np.sqrt(np.clip(c * o, 0, 1)) for c, o in zip(given[:levels], given[levels:], strict=False)]
            centers = _from_cells(np.concatenate(given[2 * levels :], axis=1), _known(size))
            scores = np.concatenate(seen, axis=1)
            return [_decoded(rows, own) for rows, own in zip(centers, scores, strict=True)]
        (array,) = given
        if self.kind == "batched":
            array = array.reshape(-1, 7)
            return [array[array[:, 0] == i][:, [1, 2, 3, 4, 6, 5]] for i in range(count)]
        if self.kind == "yolov8":
            return [_decoded(rows[:4].T, rows[4:].T) for rows in array]
        if self.kind == "yolox":
            array = np.concatenate([_from_cells(array[..., :4], _known(size)), array[..., 4:]], axis=2)
        if self.kind in ("yolov5", "yolox"):
            return [_decoded(rows[:, :4], rows[:, 4:5] * rows[:, 5:]) for rows in array]
        array = array.reshape(count, -1, 6)
        found = array[..., [0, 1, 2, 3, 5, 4]] if self.kind == "rows-class-first" else array
        return [rows[rows[:, 4] > 0] for rows in found]

    def _separate(
        self, boxes: Floats, scores: Floats, classes: Floats, *, count: int, size: tuple[int, int] | None
    ) -> list[Floats]:
        boxes, scores, classes = boxes.reshape(count, -1, 4), scores.reshape(count, -1), classes.reshape(count, -1)
        if self.kind == "tensorflow":
            height, width = _known(size)
            boxes, classes = boxes[..., [1, 0, 3, 2]] * [width, height, width, height], classes - 1
        rows = np.concatenate([boxes, scores[..., None], classes[..., None]], axis=2)
        return [found[found[:, 4] > 0] for found in rows]


def form_of(outputs: Mapping[str, Array], size: tuple[int, int] | None = None, *, certain: bool = False) -> Form | None:
    """Return how outputs hold boxes, where that is certain.

    Args:
        outputs: a batch's outputs.
        size: height and width of the model's input, which tells the number of cells.
        certain: whether None is returned for unknown forms, and for forms that other models could have as well.

    Raises:
        DataError: the form is unknown (OP711).
    """
    form = _separate_form(outputs) or _cells_form(outputs, size) or _anchors_form(outputs, size)
    if form is None and len(outputs) == 1 and not certain:
        ((name, array),) = outputs.items()
        form = _single_form(name, array) if array.dtype.kind == "f" else None
    if form is None and not certain:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise DataError("OP711", f"how the outputs hold boxes isn't known: {shapes}; {_FORMS}", hint=_POSTPROCESS)
    return form


def _separate_form(outputs: Mapping[str, Array]) -> Form | None:
    names: dict[str, str] = {}
    for name in outputs:
        for role, words in {"boxes": ("box",), "scores": ("score",), "labels": ("label", "class")}.items():
            if any(word in name.lower() for word in words) and role not in names:
                names[role] = name
                break
    if len(names) < 3:
        return None
    boxes, scores, labels = (outputs[names[role]] for role in ("boxes", "scores", "labels"))
    if boxes.shape[-1:] != (4,) or not boxes.size == 4 * scores.size == 4 * labels.size:
        return None
    order = (names["boxes"], names["scores"], names["labels"])
    if names["boxes"].startswith("detection_boxes"):
        return Form("tensorflow", order, "boxes, scores and classes as of TensorFlow's detection models")
    return Form("corners", order, "boxes (x1, y1, x2, y2), scores and classes in an output each")


def _cells_form(outputs: Mapping[str, Array], size: tuple[int, int] | None) -> Form | None:
    """Return the form of a detector that predicts a box in each cell: of YOLOX or YuNet.

    Z. Ge et al., "YOLOX: exceeding YOLO series in 2021", arXiv:2107.08430; W. Wu et al., "YuNet: a tiny
    millisecond-level face detector", Machine Intelligence Research 20 (2023).
    """
    if size is None:
        return None
    cells = [(size[0] // stride) * (size[1] // stride) for stride in _STRIDES]
    names = [f"{role}_{stride}" for role in ("cls", "obj", "bbox") for stride in _STRIDES]
    if all(name in outputs and outputs[name].ndim == 3 for name in names):
        if all(outputs[name].shape[1] == cells[i % len(cells)] for i, name in enumerate(names)):
            return Form("yunet", tuple(names), "raw outputs of YuNet, with NMS")
        return None
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape[1] != sum(cells) or array.shape[2] < 6:
        return None
    if not np.isfinite(array).all() or not _shares(array[..., 4:]):
        return None
    what = f"of {array.shape[2] - 5} classes, with NMS"
    if np.abs(array[..., 2:4]).max() < _LOGARITHM:
        return Form("yolox", (name,), f"raw YOLOX output {what}")
    return Form("yolov5", (name,), f"decoded YOLOX output {what}") if _centers(array[..., :4].swapaxes(1, 2)) else None


def _anchors_form(outputs: Mapping[str, Array], size: tuple[int, int] | None) -> Form | None:
    """Return the form of boxes of anchors, decoded, with a probability of each class, the first of which is none.

    W. Liu et al., "SSD: single shot multibox detector", ECCV 2016.
    """
    real = {name: value for name, value in outputs.items() if value.ndim == 3 and value.shape[1] >= _ANCHORS}
    if len(real) != 2 or len(outputs) != 2:
        return None
    names = sorted(real, key=lambda name: (real[name].shape[2] != 4, "box" not in name.lower()))
    boxes, scores = (real[name].astype(np.float64) for name in names)
    if boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2] or scores.shape[2] < 2:
        return None
    likely = _shares(scores) and np.allclose(scores.sum(axis=2), 1, atol=1e-3)
    ordered = (boxes[..., 2:] >= boxes[..., :2]).all(axis=2).mean() > _ORDERED
    if not (likely and ordered and np.isfinite(boxes).all() and (size is not None or not _relative(boxes))):
        return None
    classes = "1 class" if scores.shape[2] == 2 else f"{scores.shape[2] - 1} classes"
    return Form("ssd", tuple(names), f"corners and probabilities of {classes} and of none, as of SSD, with NMS")


def _single_form(name: str, array: Array) -> Form | None:
    flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
    if not len(flat) or not np.isfinite(flat).all():
        return None
    if flat.shape[1] == 6 and _corners(flat[:, :4]):
        for kind, score, label in (("rows", 4, 5), ("rows-class-first", 5, 4)):
            if _shares(flat[:, score]) and _whole(flat[:, label]) and not _whole(flat[:, score]):
                last = "score, class" if kind == "rows" else "class, score"
                return Form(kind, (name,), f"rows of x1, y1, x2, y2, {last}")  # type: ignore[arg-type]
    if array.ndim == 2 and flat.shape[1] == 7 and _corners(flat[:, 1:5]) and _whole(flat[:, 0]) and _whole(flat[:, 5]):
        return Form("batched", (name,), "rows of sample, x1, y1, x2, y2, class, score") if _shares(flat[:, 6]) else None
    if array.ndim != 3:
        return None
    if array.shape[2] == 85 and _centers(array[:, :, :4].swapaxes(1, 2)) and _shares(array[:, :, 4:]):
        return Form("yolov5", (name,), "raw YOLOv5 output of 80 classes, with NMS")
    if 5 <= array.shape[1] < array.shape[2] and _centers(array[:, :4]) and _shares(array[:, 4:]):
        return Form("yolov8", (name,), f"raw YOLOv8 output of {array.shape[1] - 4} classes, with NMS")
    return None


def _shares(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _whole(values: Array) -> bool:
    return bool(((values >= IGNORED) & (values == np.round(values))).all())


def _corners(boxes: Array) -> bool:
    return bool((boxes[:, 2:] >= boxes[:, :2]).all()) and bool(np.abs(boxes).max() > 2)


def _centers(boxes: Array) -> bool:
    """Whether [n, 4, anchors] are centers and sizes in pixels."""
    return bool((boxes[:, 2:] >= 0).all()) and bool(boxes[:, 2:].max() > 2) and bool((boxes[:, :2] > -1).mean() > 0.95)


def _relative(boxes: Floats) -> bool:
    """Whether corners are relative to the image rather than in pixels."""
    return bool(np.abs(boxes).max() <= 2)


def _known(size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        cause = "boxes are relative to the image, whose size the model's inputs don't tell"
        raise DataError("OP711", cause, hint=_POSTPROCESS)
    return size


def _scale(boxes: Floats, size: tuple[int, int] | None) -> Floats:
    """Return what corners are multiplied by to be in pixels."""
    height, width = _known(size) if _relative(boxes) else (1, 1)
    return np.array([width, height, width, height], np.float64)


def _from_cells(raw: Floats, size: tuple[int, int]) -> Floats:
    """Return centers and sizes in pixels from offsets and logarithms, both in the units of each row's cell."""
    corners, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        corners.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((corners[-1].shape[0], 1), stride))
    each = np.concatenate(strides)
    sizes = np.exp(np.minimum(raw[..., 2:4], _LOGARITHM))
    found: Floats = np.concatenate([(raw[..., :2] + np.concatenate(corners)) * each, sizes * each], axis=-1)
    return found


def _decoded(centers: Floats, scores: Floats) -> Floats:
    """Return boxes from centers and sizes, after non-maximum suppression for each class."""
    half = centers[:, 2:] / 2
    return _kept(np.concatenate([centers[:, :2] - half, centers[:, :2] + half], axis=1), scores)


def _kept(corners: Floats, scores: Floats) -> Floats:
    """Return boxes from corners and the scores of each class, after non-maximum suppression for each class."""
    if not len(corners):
        return np.zeros((0, 6))
    given = {"boxes": corners[None].astype(np.float32), "scores": scores.T[None].astype(np.float32)}
    _, label, anchor = run(_suppression(), given)["kept"].T
    rows = np.column_stack([corners[anchor], scores[anchor, label], label])
    best: Floats = rows[np.argsort(-rows[:, 4], kind="stable")[:_MOST]]
    return best


@cache
def _suppression() -> InferenceSession:
    """Return ONNX Runtime's non-maximum suppression, for boxes [1, anchors, 4] and scores [1, classes, anchors]."""
    return session(onnx.parser.parse_model(_SUPPRESSION).SerializeToString(), threads=1)
