"""Forms of operators that onnxruntime-training 1.19 has gradients for, in place of those that it hasn't."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from onnx import NodeProto, helper

from onnxprune.errors import TrainingError
from onnxprune.model.checks import describe
from onnxprune.model.tape import Tape, Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.window import Window

UNTRAINABLE = ("ConvTranspose", "GRU", "LSTM", "RNN", "Resize")
"""Operators that it can't differentiate on a CPU in any form."""


def _hard_sigmoid(op: GradientNode) -> Tensor:
    return _clipped(op.x() * float(op.attr("alpha", 0.2)) + float(op.attr("beta", 0.5)))


def _hard_swish(op: GradientNode) -> Tensor:
    return op.x() * _clipped(op.x() * (1 / 6) + 0.5)


def _clipped(x: Tensor) -> Tensor:
    """Bound by 0 and 1: x itself between, by differences of what is above zero."""
    return x.op("Relu") - (x - 1.0).op("Relu")


def _prelu(op: GradientNode) -> Tensor:
    return op.x().op("Relu") - (-op.x()).op("Relu") * op.x(1)


def _leaky_relu(op: GradientNode) -> Tensor:
    return op.x().op("Relu") - (-op.x()).op("Relu") * float(op.attr("alpha", 0.01))


def _elu(op: GradientNode) -> Tensor:
    below = -(-op.x()).op("Relu")
    return op.x().op("Relu") + (below.op("Exp") - 1.0) * float(op.attr("alpha", 1.0))


def _softplus(op: GradientNode) -> Tensor:
    x = op.x()
    return x.op("Relu") + ((-(x.op("Relu") + (-x).op("Relu"))).op("Exp") + 1.0).op("Log")


def _sum(op: GradientNode) -> Tensor:
    return reduce(Tensor.__add__, op.inputs)


def _depth_to_space(op: GradientNode) -> Tensor:
    n, c, h, w = op.x().shape
    b = op.attr("blocksize")
    blocks_first = op.attr("mode", "DCR") == "DCR"
    apart = op.x().reshape((n, b, b, c // b**2, h, w) if blocks_first else (n, c // b**2, b, b, h, w))
    order = (0, 3, 4, 1, 5, 2) if blocks_first else (0, 1, 4, 2, 5, 3)
    return apart.transpose(order).reshape((n, c // b**2, h * b, w * b))


def _instance_norm(op: GradientNode) -> Tensor:
    x, axes = op.x(), list(range(2, op.x().rank))
    centered = x - x.mean(axes)
    deviation = ((centered * centered).mean(axes) + float(op.attr("epsilon", 1e-5))).op("Sqrt")
    return centered / deviation * _channels(op.x(1), x.rank) + _channels(op.x(2), x.rank)


def _batch_norm(op: GradientNode) -> Tensor:
    """With running statistics: there, training would always use the batch's."""
    x = op.x()
    factor = op.x(1) / (op.x(4) + float(op.attr("epsilon", 1e-5))).op("Sqrt")
    return x * _channels(factor, x.rank) + _channels(op.x(2) - op.x(3) * factor, x.rank)


def _global_max(op: GradientNode) -> Tensor:
    return op.x().reduce("ReduceMax", range(2, op.x().rank))


def _channels(vector: Tensor, rank: int) -> Tensor:
    return vector.reshape((1, -1, *[1] * (rank - 2)))


_FORMS: Mapping[str, Callable[[GradientNode], Tensor]] = {
    "DepthToSpace": _depth_to_space,
    "Elu": _elu,
    "GlobalMaxPool": _global_max,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_norm,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Softplus": _softplus,
    "Sum": _sum,
}


def in_its_forms(tape: Tape, *, norms: str) -> None:
    """Rewrite the nodes of a graph in place.

    Raises:
        TrainingError: there is an operator that it can't train (OP908).
    """
    forms = {**_FORMS, **({"BatchNormalization": _batch_norm} if norms == "frozen" else {})}
    nodes, tape.nodes = tape.nodes, []
    for node in nodes:
        if node.op_type in UNTRAINABLE:
            hint = "set `backend` to native"
            cause = f"onnxruntime-training has no gradient for {node.op_type} on a CPU"
            raise TrainingError("OP908", cause, where=describe(node), hint=hint)
        op = GradientNode(node, tape, 0, lambda name: None)
        if node.op_type in forms:
            found = forms[node.op_type](op)
            tape.nodes.append(helper.make_node("Identity", [found.name], [node.output[0]], name=f"{node.name}_form"))
        else:
            tape.nodes.append(_with_moments(_with_pads(node, op)))


def _with_pads(node: NodeProto, op: GradientNode) -> NodeProto:
    """Write automatic padding out: gradients are silently wrong with it."""
    if op.attr("auto_pad", "NOTSET") == "NOTSET" or node.op_type not in ("AveragePool", "Conv", "MaxPool"):
        return node
    kernel = op.attr("kernel_shape") or op.x(1).shape[2:]
    window = Window.of(op, op.x().shape[2:], kernel, op.y().shape[2:])
    copy = NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    del copy.attribute[:]
    copy.attribute.extend([*kept, helper.make_attribute("pads", [*window.before, *(max(a, 0) for a in window.after)])])
    return copy


def _with_moments(node: NodeProto) -> NodeProto:
    """Make a LayerNormalization output its moments, which the gradient reads."""
    if node.op_type == "LayerNormalization":
        node.output.extend(f"{node.output[0]}.{i}" for i in range(len(node.output), 3))
    return node
