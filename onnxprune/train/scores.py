"""Where in a model the scores of classes are, before a Softmax turns them into probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from onnxprune.errors import TrainingError
from onnxprune.train.tensor import Tensor

_NORMALISING = ("Identity", "LogSoftmax", "Softmax")


def scores_before(proto: ModelProto, output: str, through: Sequence[str] = _NORMALISING) -> str:
    """Return the tensor that an output is the Softmax of, or the output itself if it is no Softmax."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    while output in makers and makers[output].op_type in through:
        output = makers[output].input[0]
    return output


def as_classes(scores: Tensor, labels: Sequence[int] | None) -> Tensor:
    """Bring scores to [n, classes, ...].

    Args:
        scores: [n, ...], classes along the only axis that isn't single, or the one that the labels lack.
        labels: the shape of the labels, if there are any.

    Raises:
        TrainingError: the axis of classes can't be told (OP904).
    """
    n, *rest = scores.shape
    wide = [size for size in rest if size > 1]
    if len(wide) <= 1:
        return scores.reshape((n, scores.size // n))
    positions = None if labels is None else [size for size in labels[1:] if size > 1]
    for axis in range(1, scores.rank):
        others = [size for a, size in enumerate(scores.shape) if a not in (0, axis) and size > 1]
        if others == positions or (positions is None and axis == 1):
            return scores.transpose([0, axis, *(a for a in range(1, scores.rank) if a != axis)])
    cause = f"scores of shape {list(scores.shape)} don't go with labels of shape {list(labels or ())}"
    raise TrainingError("OP904", cause, where=f'"{scores.name}"')
