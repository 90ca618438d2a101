"""What metrics see of a batch: outputs, and labels beside them where they tell classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from onnxprune.data.batch import Array
from onnxprune.errors import DataError, VerificationError
from onnxprune.evaluation.classes import Classes, Ids, classes_of, flat_labels


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch as metrics see it.

    Attributes:
        outputs: a model's outputs, [n, ...] each.
        labels: labels as given.
        classes: what the outputs say of classes, if anything.
        flat: the labels as classes, [n, positions], if they are the classes that the model tells.
        original: the same of the original model, if it is there to be compared with.
    """

    outputs: Mapping[str, Array]
    labels: Array | None
    classes: Classes | None
    flat: Ids | None
    original: BatchView | None = None

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.outputs.values())))

    def not_finite(self) -> int:
        """Count the samples for which an output isn't finite, and the original's is."""
        broken = np.zeros(self.count, bool)
        for name, output in floats(self.outputs).items():
            lost = ~np.isfinite(output)
            if self.original is not None:
                lost &= np.isfinite(self.original.outputs[name])
            broken |= lost.reshape(self.count, -1).any(axis=1)
        return int(broken.sum())


def floats(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Pick the outputs that are real numbers."""
    return {name: output for name, output in outputs.items() if output.dtype.kind in "fV"}


def class_output(outputs: Mapping[str, Array], labels: Array | None, name: str | None) -> str | None:
    """Choose the output that tells classes: the one named, or one that can be read so, best by the labels.

    Where several outputs score different numbers of classes, nothing tells which is meant.

    Raises:
        DataError: there is no output of the name (OP711).
    """
    if name is not None:
        if name not in outputs:
            near = get_close_matches(name, outputs, n=1) or list(outputs)
            hint = f"its outputs are: {', '.join(near)}"
            raise DataError("OP711", f"the model has no output {name!r}", hint=hint)
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


def view(
    outputs: Mapping[str, Array],
    labels: Array | None,
    output: str | None,
    sample: Callable[[int], str],
    original: BatchView | None = None,
) -> BatchView:
    """Make the view of a batch.

    Args:
        outputs: the model's outputs.
        labels: the labels, if there are any.
        output: the output that tells classes, if there is one.
        sample: names a sample of the batch in messages.
        original: the original's view.

    Raises:
        DataError: a label isn't the index of a class (OP708).
        VerificationError: the outputs have other shapes than the original's (OP503).
    """
    for key, value in outputs.items():
        if original is not None and original.outputs[key].shape != value.shape:
            shapes = " and ".join(str(list(o.shape)) for o in (original.outputs[key], value))
            raise VerificationError("OP503", f"output {key!r} has shapes {shapes}", where="the original and the model")
    if output is None:
        return BatchView(outputs, labels, None, None, original)
    if labels is not None and labels.dtype.kind in "biu":
        classes = classes_of(outputs[output], labels)
        if classes is not None:
            return BatchView(outputs, labels, classes, flat_labels(labels, classes.count, sample), original)
    return BatchView(outputs, labels, classes_of(outputs[output], None), None, original)
