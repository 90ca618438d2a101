"""Class scores and labels: how a batch's outputs are read as classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array
from onnxprune.errors import DataError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """An output as classes of samples, or of positions within samples.

    Attributes:
        predicted: index of the predicted class, `IGNORED` where scores are NaN: [n, positions].
        scores: the score of each class, [n, classes, positions]; None if the model outputs only indices.
    """

    predicted: Ids
    scores: Array | None

    @property
    def count(self) -> int | None:
        """Number of classes, None if the model outputs only indices."""
        return None if self.scores is None else self.scores.shape[1]


def classes_of(output: Array, labels: Array | None) -> Classes | None:
    """Interpret an output as classes.

    The class axis is the one that the labels lack, apart from axes of size 1. An integer output in the labels' shape is
    taken to be class indices.

    Args:
        output: [n, ...].
        labels: class indices, [n] or [n, ...].

    Returns:
        The classes, or None if the output has no class axis.
    """
    n = len(output)
    positions = () if labels is None else _drop_singles(labels.shape)
    if output.dtype.kind in "iu" and _drop_singles(output.shape) == positions:
        return Classes(np.maximum(output.reshape(n, -1).astype(np.int64), IGNORED), None)
    if output.dtype.kind in "biuUSO":
        return None
    axis = _class_axis(output.shape, positions)
    if axis is None:
        return None
    exact = output if output.dtype.itemsize >= 4 else output.astype(np.float32)
    scores = np.moveaxis(exact, axis, 1).reshape(n, output.shape[axis], -1)
    predicted = np.where(np.isnan(scores).any(axis=1), IGNORED, scores.argmax(axis=1))
    return Classes(predicted, scores)


def flat_labels(labels: Array, count: int | None, name: Callable[[int], str]) -> Ids:
    """Return class labels as [n, positions].

    Args:
        labels: class indices.
        count: the model's number of classes, if known.
        name: returns the name of a sample of the batch, for messages.

    Raises:
        DataError: a label is not below the number of classes (OP708).
    """
    flat: Ids = labels.reshape(len(labels), -1).astype(np.int64)
    if count is not None and (wrong := flat >= count).any():
        sample, value = int(np.argwhere(wrong)[0][0]), flat[wrong][0]
        hint = f"add ignore={value} if {value} marks what isn't to be evaluated"
        cause = f"the label {value} is beyond the model's {count} classes"
        raise DataError("OP708", cause, where=name(sample), hint=hint)
    return flat


def _class_axis(shape: tuple[int, ...], positions: tuple[int, ...]) -> int | None:
    """Return the class axis: without it and axes of size 1, the shape is that of the positions."""
    fitting = [
        axis
        for axis in range(1, len(shape))
        if shape[axis] > 1 and _drop_singles(shape[:axis] + shape[axis + 1 :]) == positions
    ]
    return fitting[0] if fitting else None


def _drop_singles(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of a sample's axes, without those of size 1."""
    return tuple(size for size in shape[1:] if size > 1)


def is_distribution(scores: NDArray[Any]) -> bool:
    """Whether scores [n, classes, positions] are probabilities already."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2))


def probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities of classes, [n, classes, positions]: the scores, or their softmax if they are none."""
    exact = scores.astype(np.float64)
    if is_distribution(exact):
        return exact
    shifted = np.exp(exact - exact.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def signed_classes(output: Array, threshold: float) -> Classes:
    """Interpret each score of an output as two classes: whether it is above a threshold.

    Args:
        output: [n, ...].
        threshold: 0.5 for probabilities, 0 for logits.

    Returns:
        The classes 0 and 1. Their scores are probabilities, or logits of which the first is 0.
    """
    high = output.reshape(len(output), -1)
    high = high if high.dtype.itemsize >= 4 else high.astype(np.float32)
    scores = np.stack([1 - high if threshold else np.zeros_like(high), high], axis=1)
    return Classes(np.where(np.isnan(high), IGNORED, high > threshold).astype(np.int64), scores)


def floats(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the floating-point outputs."""
    return {name: output for name, output in outputs.items() if output.dtype.kind in "fV"}


def class_output(outputs: Mapping[str, Array], labels: Array | None, name: str | None) -> str | None:
    """Return the class output: the one named, else the first that can be read as classes, preferably of the labels.

    None if there is none, or if several outputs have scores for different numbers of classes.
    """
    if name is not None:
        return name
    for wanted in (labels, None):
        read = {key: classes_of(output, wanted) for key, output in outputs.items()}
        found = {key: classes for key, classes in read.items() if classes is not None}
        scored = {key: classes for key, classes in found.items() if classes.scores is not None}
        if len({classes.count for classes in scored.values()}) > 1:
            return None
        if found:
            return next(iter(scored or found))
    return None
