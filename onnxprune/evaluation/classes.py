"""What a model's output says of classes: where their scores are, and which is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array
from onnxprune.errors import DataError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """An output as classes of samples, or of positions of samples.

    Attributes:
        predicted: index of the class predicted, `IGNORED` where scores are NaN: [n, positions].
        scores: the score of each class, [n, classes, positions]; None if the model gives only indices.
    """

    predicted: Ids
    scores: Array | None

    @property
    def count(self) -> int | None:
        """How many classes there are, if the model tells."""
        return None if self.scores is None else self.scores.shape[1]


def classes_of(output: Array, labels: Array | None) -> Classes | None:
    """Read an output as classes.

    A sample's scores lie along its only axis that isn't single; scores of positions along the axis that the labels
    lack. An output of whole numbers in the labels' shape is taken to be indices.

    Args:
        output: [n, ...].
        labels: class indices, [n] or [n, ...].

    Returns:
        The classes, or None if the output can't be read so.
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
    """Bring class labels to [n, positions].

    Args:
        labels: class indices.
        count: how many classes the model has, if that is known.
        name: names a sample of the batch in messages.

    Raises:
        DataError: a label is beyond the model's classes (OP708).
    """
    flat: Ids = labels.reshape(len(labels), -1).astype(np.int64)
    if count is not None and (wrong := flat >= count).any():
        sample, value = int(np.argwhere(wrong)[0][0]), flat[wrong][0]
        hint = f"if {value} marks what isn't to be judged, say ignore={value}"
        cause = f"the label {value} is beyond the model's {count} classes"
        raise DataError("OP708", cause, where=name(sample), hint=hint)
    return flat


def _class_axis(shape: tuple[int, ...], positions: tuple[int, ...]) -> int | None:
    """Find the axis of classes: without it and without single axes, the shape is that of the positions."""
    fitting = [
        axis
        for axis in range(1, len(shape))
        if shape[axis] > 1 and _drop_singles(shape[:axis] + shape[axis + 1 :]) == positions
    ]
    return fitting[0] if fitting else None


def _drop_singles(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the sizes of a sample's axes that aren't single."""
    return tuple(size for size in shape[1:] if size > 1)


def is_distribution(scores: NDArray[Any]) -> bool:
    """Tell whether scores [n, classes, positions] are probabilities already."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2))
