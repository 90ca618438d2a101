"""What a model is for: recognized from its outputs and the labels, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.data.batch import IGNORED, Array, Dataset
from onnxprune.errors import DataError
from onnxprune.evaluation.boxes import Form, form_of
from onnxprune.evaluation.classes import class_output, classes_of, floats
from onnxprune.evaluation.text import read_alphabet
from onnxprune.model.graph import GraphIndex, behind
from onnxprune.runtime.functions import find_function, guarded
from onnxprune.settings.evaluation import TaskName, TaskSettings

CLASSES = ("classification", "segmentation")
"""Tasks that choose one class among several."""

SIGNED = ("binary", "multilabel")
"""Tasks in which each score is a decision of its own."""

_PASSED = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_LOGITS = ("Add", "Conv", "Gemm", "MatMul", "Sub")  # what computes scores that aren't probabilities
_FEW = 4  # numbers of a sample, up to which they may be coordinates or angles
_ROWS = 16  # of an output, from which on they may be boxes
_MOSTLY = 0.5  # share of right answers above which an output is that of the labels
_EMBEDDED = re.compile(r"embed", re.IGNORECASE)
_HINT = "say what the model is for: `task`"


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is for, and how its output is read.

    Attributes:
        name: the task; None if it isn't known, so that only distances from the original can be measured.
        output: the output that it is about, None where it takes several.
        why: what it was recognized by.
        threshold: the score from which on a decision is positive.
        labeled: whether the labels are those of the task.
        signed: whether each score of the output is a decision of its own, rather than one class among others.
        form: for detection, how the outputs hold boxes.
        alphabet: for ctc, the symbol of each class; None if references are ids.
        blank: for ctc, the class of the blank symbol.
        postprocess: the user's function of the outputs.
    """

    name: TaskName | None
    output: str | None
    why: str
    threshold: float = 0.5
    labeled: bool = False
    signed: bool = False
    form: Form | None = None
    alphabet: tuple[str, ...] | None = None
    blank: int = 0
    postprocess: Callable[..., Any] | None = None

    def __str__(self) -> str:
        """Return what a note says."""
        if self.name is None:
            return f"the task isn't recognized: {self.why}"
        read = "" if self.form is None or str(self.form) in self.why else f"; boxes are read as {self.form}"
        return f"{self.name}{f' by output {self.output!r}' if self.output else ''}: {self.why}{read}"


def task_of(
    proto: ModelProto,
    outputs: Mapping[str, Array],
    labels: Array | None,
    data: Dataset,
    output: str | None = None,
    size: tuple[int, int] | None = None,
) -> Task:
    """Return the task of a model, by a first batch.

    Args:
        proto: the model.
        outputs: its outputs for the batch, [n, ...] each.
        labels: the labels of the batch, if there are any.
        data: the data; `reading` and `kind` say what their labels mean, if they have these attributes.
        output: the output that the user named; by default, that of `reading`.
        size: height and width of the images fed to the model.

    Raises:
        DataError: the labels or outputs don't fit the task that the user asked for, or there is no such output (OP711);
            a file or function can't be read (OP710).
    """
    settings: TaskSettings = getattr(data, "reading", None) or TaskSettings()
    output = settings.output_name if output is None else output
    if output is not None and output not in outputs:
        near = get_close_matches(output, outputs, n=1) or list(outputs)
        raise DataError("OP711", f"the model has no output {output!r}", hint=f"its outputs: {', '.join(near)}")
    wanted = settings.task if settings.task != "auto" else getattr(data, "kind", None)
    reason = "as asked for" if settings.task != "auto" else "by the kind of labels"
    if wanted is None and settings.alphabet is not None:
        wanted, reason = "ctc", "an alphabet is given"
    postprocess = find_function(settings.postprocess) if isinstance(settings.postprocess, str) else settings.postprocess
    common: dict[str, Any] = {"blank": settings.blank, "postprocess": postprocess}
    if settings.alphabet is not None:
        common["alphabet"] = read_alphabet(settings.alphabet)
    if postprocess is not None:
        if wanted is None:
            raise DataError("OP711", "a postprocess function needs to know the task", hint=_HINT)
        outputs = postprocessed(postprocess, outputs) if wanted != "detection" else outputs
        output = None if output not in outputs else output
    if wanted is not None:
        return replace(_asked(proto, wanted, reason, outputs, labels, output, size, postprocess is not None), **common)
    return _recognized(proto, outputs, labels, output, size)


def postprocessed(function: Callable[..., Any], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a user's function makes of outputs: one array.

    Raises:
        DataError: the function fails, or returns something else (OP710).
    """
    name = getattr(function, "__name__", "postprocess")
    with guarded(name, "the postprocessing"):
        return {"postprocess": np.asarray(function(dict(outputs)))}


def threshold_of(proto: ModelProto, output: str, values: Array) -> float:
    """Return where the decision of a score lies: 0.5 for probabilities, 0 for logits.

    The operator that computes the output tells; if it is neither a Sigmoid nor a linear one, the values do.
    """
    maker = _maker(proto, output)
    if maker in _LOGITS:
        return 0.0
    finite = values[np.isfinite(values)]
    within = bool(((finite >= 0) & (finite <= 1)).all())
    return 0.5 if maker in ("Sigmoid", "HardSigmoid", "Softmax") or within else 0.0


def _maker(proto: ModelProto, output: str) -> str | None:
    index = GraphIndex(proto.graph)
    node = index.makers.get(index.source(output, _PASSED))
    return None if node is None else str(node.op_type)


def _is_scaled(proto: ModelProto, output: str) -> bool:
    """Whether an output is brought to a range at the end, as coordinates and angles are, and no product is.

    A product that is scaled by a temperature gives scores.
    """
    if (maker := _maker(proto, output)) not in ("Div", "Mul"):
        return maker == "Tanh"
    index = GraphIndex(proto.graph)
    return not any(
        _maker(proto, name) in ("Gemm", "MatMul") for name in index.makers[index.source(output, _PASSED)].input
    )


def _asked(
    proto: ModelProto,
    name: TaskName,
    reason: str,
    outputs: Mapping[str, Array],
    labels: Array | None,
    output: str | None,
    size: tuple[int, int] | None,
    processed: bool,
) -> Task:
    """Return the task that the user or the labels ask for, after checking that the first batch fits it."""
    labeled = labels is not None
    if name == "detection":
        return Task(name, None, reason, labeled=labeled, form=None if processed else form_of(outputs, size))
    real = floats(outputs)
    if name in CLASSES:
        found = _class_output(proto, outputs, labels, output)
        classes = None if found is None else classes_of(outputs[found], labels)
        if found is None or (classes is None and not (name == "segmentation" and _one_class(outputs[found], labels))):
            if name == "segmentation" and labels is None:
                dense = [key for key, value in real.items() if value.ndim >= 3]
                found = output or (dense[0] if dense else None)
            elif name == "segmentation" and (ones := [k for k, v in real.items() if _one_class(v, labels)]):
                found = ones[0]
            else:
                raise DataError("OP711", f"no output has a score for each class, which {name} needs", hint=_HINT)
        threshold = 0.5 if found is None or found not in real else threshold_of(proto, found, real[found])
        signed = name == "segmentation" and classes is None and labels is not None
        return Task(name, found, reason, threshold, labeled, signed)
    found = output or next(iter(real), None)
    if found is None:
        raise DataError("OP711", f"no output has a floating-point type, which {name} needs", hint=_HINT)
    value = outputs[found]
    each = value[0].size
    if name == "binary" and each > 2:
        cause = f"binary needs one score for each sample (or two), and output {found!r} has {each}"
        raise DataError("OP711", cause, hint="multilabel takes a score for each label")
    if name in (*SIGNED, "regression") and labels is not None:
        needed = 1 if name == "binary" else each
        if labels.dtype.kind not in "biuf" or labels[0].size != needed:
            cause = f"{name} by output {found!r} needs {needed} labels for each sample, and there are {labels[0].size}"
            raise DataError("OP711", cause, hint=_HINT)
    if name == "ctc" and value.ndim != 3:
        raise DataError("OP711", f"ctc needs scores [n, time, classes], and output {found!r} has {value.ndim} axes")
    threshold = 0.0 if name == "binary" and each == 2 else threshold_of(proto, found, value)
    return Task(name, found, reason, threshold, labeled, name in SIGNED)


def _one_class(value: Array, labels: Array | None) -> bool:
    """Whether an output has one score for each position of 0/1 masks."""
    return labels is not None and labels.ndim >= 3 and value[0].size == labels[0].size and bool((labels <= 1).all())


def _recognized(
    proto: ModelProto,
    outputs: Mapping[str, Array],
    labels: Array | None,
    output: str | None,
    size: tuple[int, int] | None,
) -> Task:
    """Recognize the task by the first batch; the task of labels that fit none has no name."""
    real = floats(outputs) if output is None else {output: outputs[output]}
    if labels is not None and (found := _by_labels(proto, outputs, real, labels, output)) is not None:
        return found
    if form := form_of(outputs, size, certain=True):
        return Task("detection", None, str(form), form=form)
    for name, value in real.items():
        if _is_embedding(value):
            return Task("embedding", name, "each sample's output is a vector of length 1")
    if len(real) == 1:
        ((name, value),) = real.items()
        if value.ndim == 2 and value.shape[1] > 1 and _EMBEDDED.search(name):
            return Task("embedding", name, "the output is called an embedding, and has one axis")
        if value.dtype.kind == "f" and _maker(proto, name) == "Sigmoid" and value.ndim <= 2:
            kind: TaskName = "binary" if value[0].size == 1 else "multilabel"
            return Task(kind, name, f"the output is a Sigmoid of {value[0].size} scores for each sample")
        if value[0].size == 1:
            return Task("regression", name, "there is one number for each sample, and no Sigmoid")
        if value.ndim == 2 and value.shape[1] <= _FEW and _is_scaled(proto, name):
            return Task("regression", name, f"there are {value.shape[1]} numbers for each sample, scaled at the end")
    classes = _class_output(proto, outputs, labels, output)
    if classes is None:
        several = [name for name, value in real.items() if classes_of(value, labels) is not None]
        why = "no output has one score for each class"
        if len(several) > 1:
            why = f"several outputs may be scores of classes: {', '.join(several)}; name one with `output_name`"
        elif any(value.ndim == 3 and value.shape[1] >= _ROWS for value in real.values()):
            why += "; if these are boxes, set `task` to detection and give `postprocess`"
        return Task(None, None, why)
    return Task("classification", classes, "the output has one axis, of classes")


def _by_labels(
    proto: ModelProto, outputs: Mapping[str, Array], real: Mapping[str, Array], labels: Array, output: str | None
) -> Task | None:
    """Recognize the task by labels; None if they fit no output."""
    shape = f"labels of shape {['n', *labels.shape[1:]]}".replace("'", "")
    whole = labels.dtype.kind in "biu"
    if whole:
        embedded = labels[0].size == 1 and [name for name, value in real.items() if _is_embedding(value)]
        if embedded:
            return Task("embedding", embedded[0], "each sample's output is a vector of length 1", labeled=True)
        found = _class_output(proto, outputs, labels, output)
        classes = None if found is None else classes_of(outputs[found], labels)
        if classes is not None:
            dense = classes.predicted.shape[1] > 1
            kind: TaskName = "segmentation" if dense and labels.ndim >= 3 else "classification"
            return Task(kind, found, f"the output has a score for each class, the {shape} are classes", labeled=True)
    elif labels.dtype.kind != "f":
        return None
    fitting = [name for name, value in real.items() if value[0].size == labels[0].size]
    if not fitting:
        return None
    name, each = fitting[0], labels[0].size
    threshold = threshold_of(proto, name, real[name])
    if bool(np.isin(labels, (0, 1, IGNORED)).all()):
        if real[name].ndim >= 3 and labels.ndim >= 3 and whole:
            return Task(
                "segmentation", name, "one score for each position, and masks of 0 and 1", threshold, True, True
            )
        why = f"{each} score{'s' if each > 1 else ''} for each sample, and labels of 0 and 1"
        return Task("binary" if each == 1 else "multilabel", name, why, threshold, True, True)
    why = "the labels are real numbers" if not whole else "one number for each sample, and labels beyond 0 and 1"
    return Task("regression", name, why, labeled=True)


def _class_output(
    proto: ModelProto, outputs: Mapping[str, Array], labels: Array | None, output: str | None
) -> str | None:
    """Return the output that has scores of classes, as `class_output` does; of several that could, the likely one.

    With labels, it has enough classes, and its highest scores are right for most of the samples. If that names none, it
    isn't what another of these outputs is computed from: features.
    """
    read = {name: classes_of(value, labels) for name, value in outputs.items()}
    found = {name: classes for name, classes in read.items() if classes is not None and classes.scores is not None}
    if output is not None or len({classes.count for classes in found.values()}) < 2:
        return class_output(outputs, labels, output)
    if labels is not None:
        flat, most = labels.reshape(len(labels), -1), int(labels.max(initial=0))
        found = {name: classes for name, classes in found.items() if (classes.count or 0) > most} or found
        right = [name for name, classes in found.items() if (classes.predicted == flat).mean() > _MOSTLY]
        if len(right) == 1:
            return right[0]
    made = {name: {o for node in behind([name], proto.graph.node) for o in node.output} for name in found}
    ends = [name for name in found if not any(other != name and name in made[other] for other in found)]
    return class_output({name: outputs[name] for name in ends}, labels, None)


def _is_embedding(value: Array) -> bool:
    """Whether each sample's output is a vector of length 1 with values of both signs, which no class scores are."""
    if value.ndim != 2 or value.shape[1] < 4 or len(value) < 2 or value.dtype.kind != "f":
        return False
    lengths = np.linalg.norm(value.astype(np.float64), axis=1)
    return bool(np.allclose(lengths, 1, atol=1e-3) and (value < 0).any() and (value > 0).any())
