"""Samples on which a model and its original disagree most, with what each answers."""

from __future__ import annotations

import heapq
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.data.batch import IGNORED, Array, Batch, Dataset
from onnxprune.data.dataset import Data
from onnxprune.data.showing import picture, png
from onnxprune.evaluation.classes import Classes, Ids, probabilities
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.matching import matched
from onnxprune.evaluation.ranked import pair_cosine
from onnxprune.evaluation.text import edits
from onnxprune.evaluation.view import BatchView

_NUMBERS = 4  # of an answer that are written
_TEXT = 400  # characters of a text


@dataclass(frozen=True, slots=True)
class Example:
    """A sample on which a model and its original disagree.

    Attributes:
        name: the sample's name.
        distance: how far the answers are apart; what it measures depends on the task.
        original: the original's answer in words.
        model: the model's answer.
        label: the label; None without one.
        picture: the input as a PNG, a data URI; None if it is no image.
        text: the input's text; None if it has none.
    """

    name: str
    distance: float
    original: str
    model: str
    label: str | None
    picture: str | None
    text: str | None


@dataclass(order=True, slots=True)
class _Found:
    distance: float
    position: int  # among samples equally far apart, the first ones stay
    answers: tuple[str, str] = field(compare=False)
    label: str | None = field(compare=False)
    inputs: Mapping[str, Array] = field(compare=False)


class Disagreements:
    """Keeps the samples on which a model and its original disagree most, in bounded memory."""

    def __init__(self, most: int) -> None:
        """Set the number of samples to keep."""
        self.most = most
        self._heap: list[_Found] = []
        self._spreads: dict[str, float] = {}  # standard deviations of the original's outputs, in the first batch

    def add(self, batch: Batch, seen: BatchView, start: int) -> None:
        """Take the samples of a batch.

        Args:
            batch: the batch.
            seen: its outputs, with those of the original.
            start: the position of its first sample in the data.
        """
        if seen.original is None or not self.most:
            return
        for name, value in seen.original.compared.items():
            self._spreads.setdefault(name, float(np.std(value.astype(np.float64))) or 1.0)
        distances, answer = _compare(seen, seen.original, self._spreads)
        for row in np.flatnonzero(distances > 0):
            far = float(distances[row])
            if len(self._heap) == self.most and far <= self._heap[0].distance:
                continue
            inputs = {name: _row(array, int(row), batch) for name, array in batch.inputs.items()}
            answers = answer(seen.original, int(row)), answer(seen, int(row))
            found = _Found(far, -(start + int(row)), answers, _label(seen, int(row)), inputs)
            (heapq.heappush if len(self._heap) < self.most else heapq.heapreplace)(self._heap, found)

    def found(self, dataset: Dataset) -> tuple[Example, ...]:
        """Return the samples, the largest distance first."""
        recipes = {fit.spec.name: fit.recipe for fit in dataset.fits} if isinstance(dataset, Data) else {}
        examples = []
        for one in sorted(self._heap, reverse=True):
            pixels = picture(one.inputs, recipes)
            shown = None if pixels is None else f"data:image/png;base64,{b64encode(png(pixels)).decode()}"
            text = dataset.text(-one.position) if isinstance(dataset, Data) else None
            text = text if text is None or len(text) <= _TEXT else f"{text[:_TEXT]}…"
            name = dataset.name(-one.position)
            examples.append(Example(name, one.distance, *one.answers, one.label, shown, text))
        return tuple(examples)


Answer = Callable[[BatchView, int], str]


def _compare(mine: BatchView, its: BatchView, spreads: Mapping[str, float]) -> tuple[Floats, Answer]:
    """Return how far the answers to each sample are apart, 0 where they agree, and what writes an answer."""
    match mine.task.name:
        case "detection":
            assert mine.boxes is not None and its.boxes is not None
            pairs = [matched(a, b) for a, b in zip(mine.boxes, its.boxes, strict=True)]
            return np.array([total - same for same, total in pairs], np.float64), _boxes
        case "ctc":
            texts = zip(mine.texts(), its.texts(), strict=True)
            return np.array([edits(a, b) for a, b in texts], np.float64), lambda view, row: str(view.texts()[row])
        case "embedding":
            return _angles(mine, its), _numbers
    if mine.classes is not None and its.classes is not None:
        return _classes_apart(mine, its), _classes
    return _errors(mine, its, spreads), _numbers


def _classes_apart(mine: BatchView, its: BatchView) -> Floats:
    """Return the share of positions with another class, plus the mean probability there that the original's lost."""
    assert mine.classes is not None and its.classes is not None
    differ, chosen = mine.classes.predicted != its.classes.predicted, its.classes.predicted
    before, after = (_probability(view.classes, chosen) for view in (its, mine) if view.classes is not None)
    lost = np.where(differ, np.clip(before - after, 0, 1), 0).mean(axis=1)
    far: Floats = differ.mean(axis=1) + lost / (differ.shape[1] + 1)
    return far


def _probability(classes: Classes, chosen: Ids) -> Floats:
    """Return the probability of a class at each position, [n, positions]; 0 if only classes are known."""
    if classes.scores is None:
        return np.zeros(chosen.shape)
    known = probabilities(np.nan_to_num(classes.scores.astype(np.float64)))
    own: Floats = np.take_along_axis(known, np.maximum(chosen, 0)[:, None], axis=1)[:, 0]
    return own


def _angles(mine: BatchView, its: BatchView) -> Floats:
    assert mine.value is not None and its.value is not None
    a, b = (np.nan_to_num(v.value.reshape(v.count, -1).astype(np.float64)) for v in (mine, its) if v.value is not None)
    far: Floats = np.maximum(1 - pair_cosine(a, b), 0)
    return far


def _errors(mine: BatchView, its: BatchView, spreads: Mapping[str, float]) -> Floats:
    """Return the root mean square difference of all outputs, relative to the spreads of the original's."""
    total, elements = np.zeros(mine.count), 0
    for name, value in mine.compared.items():
        other = its.compared[name]
        if value.shape != other.shape or not value.size:
            continue
        a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (value, other))
        total += np.nan_to_num(((a - b) / spreads[name]) ** 2, posinf=0.0).sum(axis=1)
        elements += a.shape[1]
    return np.sqrt(total / max(elements, 1))


def _classes(view: BatchView, row: int) -> str:
    """Write the class of a sample, with its score, or the classes of its first positions."""
    assert view.classes is not None
    found, scores = view.classes.predicted[row], view.classes.scores
    if len(found) > 1:
        values, counts = np.unique(found, return_counts=True)
        most = sorted(zip(counts.tolist(), values.tolist(), strict=True), reverse=True)[:_NUMBERS]
        return ", ".join(f"class {value} at {count / len(found):.1%}" for count, value in most)
    if found[0] == IGNORED:
        return "none: a score isn't a number"
    return f"class {found[0]}" + ("" if scores is None else f" ({float(scores[row, found[0], 0]):.3g})")


def _boxes(view: BatchView, row: int) -> str:
    assert view.boxes is not None
    best = sorted(view.boxes[row].tolist(), key=lambda box: -float(box[4]))
    shown = ", ".join(f"class {box[5]:g} at {box[4]:.2f}" for box in best[:_NUMBERS])
    return f"{len(best)} boxes: {shown}" if best else "no box"


def _numbers(view: BatchView, row: int) -> str:
    value = view.value if view.value is not None else next(iter(view.compared.values()))
    flat = value[row].reshape(-1)
    shown = ", ".join(f"{float(number):.4g}" for number in flat[:_NUMBERS])
    return shown + (f", … ({flat.size} numbers)" if flat.size > _NUMBERS else "")


def _label(view: BatchView, row: int) -> str | None:
    """Write a label, if it is a class, a number or a text."""
    if view.labels is None or view.task.name == "detection":
        return None
    label: Any = view.labels[row]
    if np.ndim(label):
        return None
    if view.classes is not None:
        return f"class {label}"
    return f"{label:.4g}" if label.dtype.kind == "f" else str(label)


def _row(array: Array, row: int, batch: Batch) -> Array:
    """Return a sample's part of an input, copied, so that the batch isn't kept."""
    whole = batch.whole or not array.ndim or len(array) != batch.count
    return np.array(array if whole else array[row])
