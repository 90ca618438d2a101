"""A batch as metrics take it: outputs and labels, read as the task says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data.batch import IGNORED, Array, Batch
from onnxprune.errors import DataError, VerificationError
from onnxprune.evaluation.classes import Classes, Ids, classes_of, flat_labels, floats, signed_classes
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.tasks import SIGNED, Task, postprocessed
from onnxprune.evaluation.text import greedy
from onnxprune.runtime.functions import guarded


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch's outputs and labels, as metrics take them.

    Attributes:
        task: what the model is for.
        outputs: the model's outputs, [n, ...] each.
        compared: the floating-point tensors to compare with the original's: outputs, and for outputs behind a
            selection, what is in front of it.
        labels: the labels as given.
        value: the output that the task is about, None if it takes several.
        classes: the class output, if there is one; of binary and multilabel tasks, the classes 0 and 1 of each score.
        flat: the labels as [n, positions], if they are classes of that output.
        boxes: for detection, the boxes of each sample, see `onnxprune.evaluation.boxes`.
        original: the view of the original model, if there is one to compare with.
    """

    task: Task
    outputs: Mapping[str, Array]
    compared: Mapping[str, Array]
    labels: Array | None
    value: Array | None = None
    classes: Classes | None = None
    flat: Ids | None = None
    boxes: Sequence[Floats] | None = None
    original: BatchView | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.outputs.values())))

    @property
    def truth(self) -> list[Floats]:
        """For detection, the true boxes of each sample."""
        assert self.labels is not None
        return [np.asarray(rows[rows[:, 0] != IGNORED], np.float64) for rows in self.labels]

    def texts(self) -> list[Any]:
        """For ctc, what the scores of each sample say: text if there is an alphabet, else ids.

        Raises:
            DataError: the alphabet has another size than the output has classes (OP711).
        """
        assert self.value is not None
        task, classes = self.task, self.value.shape[2]
        found = greedy(self.value, task.blank % classes)
        if task.alphabet is None:
            return found
        if len(task.alphabet) != classes:
            cause = f"the alphabet has {len(task.alphabet)} symbols, and the output has {classes} classes"
            raise DataError("OP711", cause, hint="give a line for each class; the line of the blank isn't used")
        return ["".join(task.alphabet[i] for i in ids) for ids in found]

    def references(self) -> list[Any]:
        """For ctc, the labels of each sample: text if there is an alphabet, else ids.

        Raises:
            DataError: the labels are text and there is no alphabet, or an id is beyond it (OP711).
        """
        assert self.labels is not None
        alphabet = self.task.alphabet
        if self.labels.dtype.kind == "U":
            if alphabet is None:
                raise DataError(
                    "OP711", "the labels are text, which needs the model's alphabet", hint="give `alphabet`"
                )
            return list(self.labels.tolist())
        ids = [row[row != IGNORED].tolist() for row in self.labels.reshape(self.count, -1)]
        if alphabet is None:
            return ids
        if any(i >= len(alphabet) for row in ids for i in row):
            raise DataError("OP708", f"a label is beyond the alphabet's {len(alphabet)} symbols")
        return ["".join(alphabet[i] for i in row) for row in ids]

    def not_finite(self) -> int:
        """Count the samples with an output that isn't finite where the original's is."""
        broken = np.zeros(self.count, bool)
        for name, output in {**floats(self.outputs), **self.compared}.items():
            lost = ~np.isfinite(output)
            its = None if self.original is None else self.original.compared.get(name)
            if its is not None and its.shape == output.shape:
                lost &= np.isfinite(its)
            broken |= lost.reshape(self.count, -1).any(axis=1)
        return int(broken.sum())


def view(
    task: Task,
    tensors: Mapping[str, Array],
    batch: Batch,
    sample: Callable[[int], str],
    original: BatchView | None = None,
    *,
    fronts: Collection[str] = (),
    behind: Collection[str] = (),
) -> BatchView:
    """Build the view of a batch.

    Args:
        task: what the model is for.
        tensors: the model's outputs, and tensors in front of a selection.
        batch: the batch.
        sample: returns the name of a sample of the batch, for messages.
        original: the original model's view.
        fronts: the tensors in front of a selection.
        behind: the outputs behind it, which aren't compared with the original's.

    Raises:
        DataError: a label doesn't fit the task (OP708), or outputs can't be read as the task needs (OP711).
        VerificationError: an output's shape differs from the original's (OP503); boxes found may differ in number.
    """
    labels = batch.labels
    outputs = {name: value for name, value in tensors.items() if name not in fronts}
    compared = floats({name: value for name, value in tensors.items() if name not in behind})
    if original is not None and task.name != "detection":
        for key, value in ((key, value) for key, value in outputs.items() if key not in behind):
            check_shapes(key, value, original.outputs[key])
    if task.name is None:
        return BatchView(task, outputs, compared, labels, original=original)
    if task.name == "detection":
        return BatchView(task, outputs, compared, labels, boxes=_boxes(task, outputs, batch), original=original)
    read = outputs if task.postprocess is None else postprocessed(task.postprocess, outputs)
    value = next(iter(read.values())) if task.output is None else read[task.output]
    if task.name == "ctc" and value.ndim == 4 and value.shape[2] == 1:
        value = value[:, :, 0]  # time comes first in a model of batch size 1
    classes, flat = None, None
    if task.name in SIGNED or task.name == "segmentation":
        classes = None if task.name in SIGNED else classes_of(value, labels)
        if task.name == "segmentation" and classes is None and labels is None and value.ndim > 2 and value.shape[1] > 1:
            classes = _classes_first(value)
        if classes is None:
            if task.name == "binary" and value[0].size == 2:
                pair = value.reshape(len(value), 2)
                value = pair[:, 1:] - pair[:, :1]
            classes = signed_classes(value, task.threshold)
            flat = None if labels is None else _signs(labels, sample)
        elif labels is not None:
            flat = flat_labels(labels, classes.count, sample)
    elif task.name == "classification":
        known = labels is not None and labels.dtype.kind in "biu"
        classes = classes_of(value, labels) if known else None
        if labels is not None and classes is not None:
            flat = flat_labels(labels, classes.count, sample)
        else:
            classes = classes_of(value, None)
    return BatchView(task, outputs, compared, labels, value, classes, flat, None, original)


def check_shapes(name: str, mine: Array, original: Array) -> None:
    """Check that an output has the original's shape.

    Raises:
        VerificationError: it hasn't (OP503).
    """
    if mine.shape != original.shape:
        shapes = " and ".join(str(list(array.shape)) for array in (original, mine))
        raise VerificationError("OP503", f"output {name!r} has shapes {shapes}", where="the original and the model")


def _signs(labels: Array, sample: Callable[[int], str]) -> Ids:
    """Return labels of 0 and 1 as [n, positions].

    Raises:
        DataError: a label is something else (OP708).
    """
    flat = labels.reshape(len(labels), -1)
    wrong = ~np.isin(flat, (0, 1, IGNORED))
    if wrong.any():
        cause = f"the label {flat[wrong][0]:g} is neither 0 nor 1, which a decision by one score needs"
        where = sample(int(np.argwhere(wrong)[0][0]))
        raise DataError("OP708", cause, where=where, hint="set `task` to regression if labels are numbers")
    return flat.astype(np.int64)


def _classes_first(value: Array) -> Classes:
    """Interpret an output [n, classes, ...] as classes of positions."""
    return Classes(value.argmax(axis=1).reshape(len(value), -1), value.reshape(*value.shape[:2], -1))


def _boxes(task: Task, outputs: Mapping[str, Array], batch: Batch) -> list[Floats]:
    if task.postprocess is None:
        assert task.form is not None
        return task.form.read(outputs, batch.count, image_size(batch))
    name = getattr(task.postprocess, "__name__", "postprocess")
    with guarded(name, "the postprocessing"):
        found = [np.asarray(rows, np.float64).reshape(-1, 6) for rows in task.postprocess(dict(outputs))]
    if len(found) != batch.count:
        raise DataError("OP710", f"it returned boxes of {len(found)} samples, not of {batch.count}", where=name)
    return found


def image_size(batch: Batch) -> tuple[int, int] | None:
    """Return height and width of the images fed to the model, None if no input is an image."""
    for array in batch.inputs.values():
        if array.ndim == 4:
            first, *rest = array.shape[1:] if array.shape[1] in (1, 3, 4) else (array.shape[3], *array.shape[1:3])
            if first in (1, 3, 4):
                return rest[0], rest[1]
    return None
