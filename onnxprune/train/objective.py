"""The objective: the losses to minimize, their tensors and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.autodiff.forward import Forward, output_of, raw_scores
from onnxprune.autodiff.prepare import as_classes, scores_before
from onnxprune.errors import TrainingError
from onnxprune.model.tape import INT64, Tensor
from onnxprune.settings.training import TrainSettings
from onnxprune.train.losses import LOSSES, OF_CLASSES, feature_distance
from onnxprune.train.sparsity import PENALTIES

_UNDEFINED = TensorProto.UNDEFINED  # the type that some exporters write
_REAL = (_UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_WITH_TEACHER: Mapping[str, float] = {"kl": 1.0}
_WITH_BOTH: Mapping[str, float] = {"cross-entropy": 0.5, "kl": 1.0}
_WITH_LABELS: Mapping[str, float] = {"cross-entropy": 1.0}


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of losses.

    Attributes:
        output: the output that is trained.
        losses: the output's losses with their weights.
        taught: whether each loss compares with the teacher's output.
        features: tensors that are compared with the teacher's.
    """

    output: str
    losses: Mapping[str, float]
    taught: Mapping[str, bool]
    features: tuple[str, ...]

    def teacher_tensors(self, teacher: ModelProto) -> dict[str, str]:
        """Return the needed tensors of the teacher, by the names of a step's inputs."""
        wanted = {f"teacher:{name}": name for name in self.features}
        for loss in (name for name, taught in self.taught.items() if taught):
            source = scores_before(teacher, self.output) if loss in OF_CLASSES else self.output
            wanted[f"teacher:{loss}"] = source
        return wanted


def objective(proto: ModelProto, settings: TrainSettings, *, labeled: bool, teacher: bool) -> Objective:
    """Return the objective of a training.

    The default with a teacher is the divergence from its distribution, which needs no labels, plus cross-entropy if
    there are labels. Without labels, other losses compare with the teacher's outputs.

    Raises:
        TrainingError: labels or a teacher are missing (OP904).
    """
    output = settings.output or _first_real(proto)
    default = (_WITH_BOTH if labeled else _WITH_TEACHER) if teacher else _WITH_LABELS
    losses: dict[str, float] = {str(name): weight for name, weight in (settings.losses or default).items()}
    taught = {name: name == "kl" or not labeled for name in losses}
    lacking = [name for name in losses if (taught[name] and not teacher) or (name == "cross-entropy" and not labeled)]
    if lacking or (settings.features and not teacher):
        need = "labels" if lacking == ["cross-entropy"] else "a teacher, the original model"
        hint = "give data with labels, or the original model (`teacher`)"
        what = lacking[0] if lacking else "features"
        raise TrainingError("OP904", f"loss {what!r} needs {need}", hint=hint)
    return Objective(output, losses, taught, settings.features)


def _first_real(proto: ModelProto) -> str:
    for value in proto.graph.output:
        if value.type.tensor_type.elem_type in _REAL:
            return str(value.name)
    raise TrainingError("OP904", "the model has no floating-point output to train")


def write_losses(
    forward: Forward,
    proto: ModelProto,
    goal: Objective,
    settings: TrainSettings,
    examples: Mapping[str, NDArray[Any]],
) -> dict[str, Tensor]:
    """Append the losses to a forward pass.

    Args:
        forward: the forward pass of the model.
        proto: the model.
        goal: the objective.
        settings: parameters and weights of losses.
        examples: arrays with the shapes of a step's inputs other than the model's: ``labels`` and the teacher's
            tensors.

    Returns:
        The weighted sum as "loss", and each loss by its name if there are several.

    Raises:
        TrainingError: a tensor can't be found, or its shape doesn't fit (OP904).
    """
    tape = forward.tape
    parts: dict[str, tuple[Tensor, float]] = {}

    def fed(name: str, dtype: int) -> Tensor:
        return tape.input(name, examples[name].shape, dtype)

    labels = fed("labels", INT64 if "cross-entropy" in goal.losses else 1) if _needs_labels(goal) else None
    for name, weight in goal.losses.items():
        mine = raw_scores(forward, proto, goal.output) if name in OF_CLASSES else output_of(forward, goal.output)
        if name == "bce":
            mine = _before_sigmoid(forward, proto, goal.output)
        target = fed(f"teacher:{name}", mine.dtype) if goal.taught[name] else labels
        assert target is not None
        if name in OF_CLASSES:
            shape = target.shape if target is labels else None
            mine = as_classes(mine, shape)
            target = target if target is labels else as_classes(target, None)
        elif target.size != mine.size:
            cause = f"loss {name!r} compares shapes {list(mine.shape)} and {list(target.shape)}"
            raise TrainingError("OP904", cause, where=f'output "{goal.output}"')
        else:
            target = target.reshape(mine.shape)
        parts[name] = LOSSES[name](mine, target, settings.loss), weight
    for name in goal.features:
        parts[name] = feature_distance(output_of(forward, name), fed(f"teacher:{name}", 1)), settings.feature_weight
    for name, penalty in PENALTIES.items():
        if weight := getattr(settings, name):
            parts[name] = penalty(forward, proto), weight
    weighted = [loss if weight == 1 else loss * weight for loss, weight in parts.values()]
    total = weighted[0] if len(weighted) == 1 else tape.emit("Sum", *weighted)
    return {"loss": total, **({} if len(parts) == 1 else {name: loss for name, (loss, _) in parts.items()})}


def _needs_labels(goal: Objective) -> bool:
    return any(not taught for taught in goal.taught.values())


def _before_sigmoid(forward: Forward, proto: ModelProto, output: str) -> Tensor:
    name = scores_before(proto, output, ("Identity", "Sigmoid"))
    return output_of(forward, name if name in forward.tape else output)
