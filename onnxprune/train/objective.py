"""The objective: the losses to minimize, their tensors and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.autodiff.forward import Forward, output_of, raw_scores
from onnxprune.autodiff.prepare import NORMALIZING, as_classes, scores_before
from onnxprune.errors import TrainingError
from onnxprune.evaluation.tasks import Task
from onnxprune.model.graph import GraphIndex, attribute, opset_of
from onnxprune.model.tape import INT64, Tensor
from onnxprune.settings.training import TrainSettings
from onnxprune.shapes import concretize
from onnxprune.trace.outputs import followed as standing_for
from onnxprune.train.losses import LOSSES, OF_CLASSES
from onnxprune.train.sparsity import PENALTIES

_TINY = 1e-7  # least probability whose logit is taken
_TAUGHT_ONLY = ("kl", "nmse")
_LABELS_WEIGHT = 0.5  # of labels beside a teacher
_MOVING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_BOUNDED = ("Clip", "HardSigmoid", "LpNormalization", "Relu", "Sigmoid", "Tanh")  # what they make are no logits


@dataclass(frozen=True, slots=True)
class Term:
    """A loss of one tensor.

    Attributes:
        name: the name under which it is reported.
        loss: the loss, from `LOSSES`.
        tensor: the tensor.
        weight: its weight in the sum.
        taught: whether it compares with the teacher's tensor of the same name, rather than with labels.
        axis: the axis of classes, where it is known.
        probabilities: whether the tensor holds probabilities of decisions.
    """

    name: str
    loss: str
    tensor: str
    weight: float = 1.0
    taught: bool = True
    axis: int | None = None
    probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of losses.

    Attributes:
        terms: the losses.
    """

    terms: tuple[Term, ...]

    @property
    def labeled(self) -> bool:
        """Whether a loss compares with labels."""
        return any(not term.taught for term in self.terms)

    @property
    def follows(self) -> dict[str, tuple[str, ...]]:
        """The losses of each tensor."""
        tensors = dict.fromkeys(term.tensor for term in self.terms)
        return {n: tuple(dict.fromkeys(t.loss for t in self.terms if t.tensor == n)) for n in tensors}

    def teacher_tensors(self, teacher: ModelProto) -> dict[str, str]:
        """Return the needed tensors of the teacher, by the names of a step's inputs."""
        return {
            f"teacher:{term.name}": scores_before(teacher, term.tensor) if term.loss in OF_CLASSES else term.tensor
            for term in self.terms
            if term.taught
        }


def objective(
    proto: ModelProto,
    settings: TrainSettings,
    *,
    labeled: bool,
    teacher: bool,
    inputs: Mapping[str, Sequence[int]] | None = None,
    task: Task | None = None,
) -> Objective:
    """Return the objective of a training.

    By default, all outputs of real numbers follow the teacher, which needs no labels: scores of classes by the
    divergence of distributions, others by the squared error relative to their variance. With labels there is
    the loss of the task as well: cross-entropy for classes, its binary form for decisions, squared error for numbers.

    Args:
        proto: a normalized model.
        settings: the losses, if others are wanted, and what is followed.
        labeled: whether there are labels.
        teacher: whether there is a teacher.
        inputs: the shapes of a batch's inputs.
        task: what the labels are for; classes if None.

    Raises:
        TrainingError: labels or a teacher are missing, or there is nothing to train (OP904).
    """
    outputs = followed(proto, settings)
    classes = _class_axes(proto, outputs, inputs) if teacher else {}
    target = task.output if task is not None and task.output in outputs else outputs[0]
    by_labels = _label_loss(task)
    if by_labels != "cross-entropy":
        classes.pop(target, None)
    elif labeled and not settings.losses:
        classes.setdefault(target, None)
    likely = task is not None and task.signed and task.threshold > 0
    terms: list[Term] = []

    def add(loss: str, tensors: Sequence[str], weight: float, *, taught: bool) -> None:
        for tensor in tensors:
            name = loss if len(outputs) == 1 else f"{loss}:{tensor}"
            terms.append(Term(name, loss, tensor, weight, taught, classes.get(tensor), likely and tensor == target))

    scores = [name for name in outputs if name in classes] or [target]
    if settings.losses:
        for loss, weight in settings.losses.items():
            taught = loss in _TAUGHT_ONLY or not labeled
            _require(loss, taught, labeled=labeled, teacher=teacher)
            whole = taught and loss in ("mse", "nmse")
            add(loss, outputs if whole else scores if taught else [target], weight, taught=taught)
    else:
        if by_labels is None and not teacher:
            assert task is not None
            cause = f"there is no loss by labels for {task.name}"
            raise TrainingError("OP904", cause, hint="give the original model (`teacher`), or name a loss (`losses`)")
        if by_labels is not None and (labeled or not teacher):
            _require("cross-entropy", not labeled, labeled=labeled, teacher=teacher)
            add(by_labels, [target], _LABELS_WEIGHT if teacher else 1.0, taught=False)
        if teacher:
            add("kl", [name for name in outputs if name in classes], 1.0, taught=True)
            add("nmse", [name for name in outputs if name not in classes], 1.0, taught=True)
    if settings.features and not teacher:
        _require("features", True, labeled=labeled, teacher=teacher)
    terms += [Term(f"feature:{name}", "nmse", name, settings.feature_weight) for name in settings.features]
    return Objective(tuple(terms))


def _label_loss(task: Task | None) -> str | None:
    """Return the loss by the labels of a task, None if there is none."""
    if task is None or task.name is None or not task.labeled:
        return "cross-entropy"
    if task.signed:
        return "bce"
    losses = {"classification": "cross-entropy", "segmentation": "cross-entropy", "regression": "mse"}
    return losses.get(task.name)


def followed(proto: ModelProto, settings: TrainSettings) -> list[str]:
    """Return the tensors that are trained: the output named, or all that stand for outputs, of a size that is fixed.

    Raises:
        TrainingError: there are none (OP904).
    """
    if settings.output:
        return [settings.output]
    standing = standing_for(proto)
    found = [name for name in standing.tensors if name not in standing.sized]
    if not found:
        raise TrainingError("OP904", "the model has no floating-point output to train")
    return found


def _class_axes(
    proto: ModelProto, outputs: Sequence[str], inputs: Mapping[str, Sequence[int]] | None
) -> dict[str, int | None]:
    """Return the outputs that are scores of classes, with the axis of classes.

    These are what a Softmax makes and, where no other output could be, the only output with one number for each
    position of a single axis.
    """
    index, found, vectors = GraphIndex(proto.graph), dict[str, int | None](), list[str]()
    shapes: Mapping[str, Sequence[int]] = {}
    for output in outputs:
        maker = index.makers.get(index.source(output, ("Identity",)))
        if maker is not None and maker.op_type in NORMALIZING and maker.op_type != "Identity":
            found[output] = attribute(maker, "axis", 1 if opset_of(proto) < 13 else -1)
            continue
        last = index.makers.get(index.source(output, _MOVING))
        shapes = shapes or concretize(proto, inputs, empty=True).shapes
        wide = [size for size in shapes.get(output, ())[1:] if size > 1]
        if len(wide) == 1 and (last is None or last.op_type not in _BOUNDED):
            vectors.append(output)
    if len(vectors) == 1 and not found:
        found[vectors[0]] = None
    return found


def _require(loss: str, taught: bool, *, labeled: bool, teacher: bool) -> None:
    """Check that what a loss compares with is there.

    Raises:
        TrainingError: it isn't (OP904).
    """
    without_labels = loss == "cross-entropy" and not labeled
    if without_labels or (taught and not teacher):
        need = "labels" if without_labels else "a teacher, the original model"
        hint = "give data with labels, or the original model (`teacher`)"
        raise TrainingError("OP904", f"loss {loss!r} needs {need}", hint=hint)


def write_losses(
    forward: Forward,
    proto: ModelProto,
    goal: Objective,
    settings: TrainSettings,
    examples: Mapping[str, NDArray[Any]],
    scales: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Append the losses to a forward pass.

    Args:
        forward: the forward pass of the model.
        proto: the model.
        goal: the objective.
        settings: parameters and weights of losses.
        examples: arrays with the shapes of a step's inputs other than the model's: ``labels`` and the teacher's
            tensors.
        scales: what an error is relative to, by the names of losses.

    Returns:
        The weighted sum as "loss", and each loss by its name if there are several.

    Raises:
        TrainingError: a tensor can't be found, or its shape doesn't fit (OP904).
    """
    tape = forward.tape
    parts: dict[str, tuple[Tensor, float]] = {}

    def fed(name: str, dtype: int) -> Tensor:
        return tape.input(name, examples[name].shape, dtype)

    by_class = any(term.loss == "cross-entropy" for term in goal.terms)
    labels = fed("labels", INT64 if by_class else 1) if goal.labeled else None
    for term in goal.terms:
        mine = raw_scores(forward, proto, term.tensor) if term.loss in OF_CLASSES else output_of(forward, term.tensor)
        if term.loss == "bce":
            mine = _logits(forward, proto, term)
        target = fed(f"teacher:{term.name}", mine.dtype) if term.taught else labels
        assert target is not None
        if term.loss in OF_CLASSES:
            shape = labels.shape if labels is not None and by_class else None
            mine = as_classes(mine, shape, term.axis)
            if mine.shape[1] < 2:
                cause = f"{term.loss} compares classes, and there is one score, so it would always be 0"
                hint = "use the loss bce for labels of 0 and 1, mse or huber for numbers"
                raise TrainingError("OP904", cause, where=f'"{term.tensor}"', hint=hint)
            target = as_classes(target, shape, term.axis) if term.taught else target
        if (target.shape != mine.shape) if term.taught else (target.size != mine.size) and term.loss not in OF_CLASSES:
            cause = f"loss {term.loss!r} compares shapes {list(mine.shape)} and {list(target.shape)}"
            channels = term.taught and len(target.shape) == len(mine.shape) and target.size > mine.size
            hint = "give the plan that the model was pruned with (`plan`): it tells which channels stayed"
            raise TrainingError("OP904", cause, where=f'"{term.tensor}"', hint=hint if channels else None)
        if term.loss not in OF_CLASSES:
            target = target.reshape(mine.shape)
        loss = LOSSES[term.loss](mine, target, settings.loss)
        scale = (scales or {}).get(term.name, 1.0)
        parts[tape.unique(term.name)] = loss if scale == 1 else loss * (1 / scale), term.weight
    for name, penalty in PENALTIES.items():
        if weight := getattr(settings, name):
            parts[tape.unique(name)] = penalty(forward, proto), weight
    weighted = [loss if weight == 1 else loss * weight for loss, weight in parts.values()]
    total = weighted[0] if len(weighted) == 1 else tape.emit("Sum", *weighted)
    return {"loss": total, **({} if len(parts) == 1 else {name: loss for name, (loss, _) in parts.items()})}


def _logits(forward: Forward, proto: ModelProto, term: Term) -> Tensor:
    """Return what a Sigmoid takes, or the logits of probabilities; a tensor of anything else as it is."""
    name = scores_before(proto, term.tensor, ("Identity", "Sigmoid"))
    if name in forward.tape and name != scores_before(proto, term.tensor, ("Identity",)):
        return output_of(forward, name)
    values = output_of(forward, term.tensor)
    if not term.probabilities:
        return values
    high, low = values.op("Max", _TINY), (1 - values).op("Max", _TINY)
    return high.op("Log") - low.op("Log")
