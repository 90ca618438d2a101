"""Write a model as a forward pass that can be differentiated: fixed sizes, weights as inputs, parameters folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.autodiff.prepare import (
    as_classes,
    prepared,
    scores_before,
    single_precision,
    without_known_branches,
)
from onnxprune.autodiff.unroll import unrolled
from onnxprune.errors import TrainingError
from onnxprune.model.bodies import is_body_input
from onnxprune.model.checks import describe
from onnxprune.model.file import weights
from onnxprune.model.graph import OF_SHAPE, opset_of
from onnxprune.model.tape import Tape, Tensor
from onnxprune.operators.card import WrittenOut, card_of
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.window import Window
from onnxprune.shapes import Shapes, concretize

Norms = Literal["batch", "frozen"]


@dataclass(slots=True)
class Forward:
    """The forward pass of a model at fixed sizes.

    Attributes:
        tape: the graph.
        inputs: the model's inputs.
        outputs: its outputs.
        weights: the initializers that are trained, as inputs of the graph.
        statistics: running statistics of normalizations, as inputs of the graph.
        updates: their new values.
        decided: the given inputs by which it was decided which body of an If runs.
    """

    tape: Tape
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[str, Tensor] = field(default_factory=dict)
    decided: frozenset[str] = frozenset()


def forward(
    proto: ModelProto,
    input_shapes: Mapping[str, Sequence[int]],
    trained: Sequence[str],
    *,
    norms: Norms = "batch",
    fast: bool = True,
    given: Mapping[str, NDArray[Any]] | None = None,
) -> Forward:
    """Write the forward pass of a model.

    Args:
        proto: a normalized model.
        input_shapes: the shapes of a batch's arrays.
        trained: the initializers that are trained.
        norms: whether batch normalizations use the moments of the batch and update the running ones, or stay frozen.
        fast: whether operators are written in the form that ONNX Runtime's CPU provider runs fastest. This includes
            BatchNormalization's training mode, which other providers don't support.
        given: values of inputs that never change, such as a sampling rate: they may decide which body of an If runs.

    Raises:
        TrainingError: the model can't be converted to the opset needed (OP903), or a shape is unknown (OP902).
        ModelError: the shapes don't fit.
    """
    proto, decided = without_known_branches(proto, input_shapes, given or {})
    if any(map(is_body_input, proto.graph.node)):
        proto = unrolled(proto, concretize(proto, input_shapes, empty=True))
    proto = prepared(proto)
    shapes = concretize(proto, input_shapes, empty=True)
    walk = _ForwardBuilder(proto, shapes, trained, norms, fast)
    for node in proto.graph.node:
        walk.add(node)
    result = walk.result
    result.decided = decided
    result.outputs = {value.name: result.tape[value.name] for value in proto.graph.output}
    return result


class _ForwardBuilder:
    def __init__(self, proto: ModelProto, shapes: Shapes, trained: Sequence[str], norms: Norms, fast: bool) -> None:
        self.shapes = shapes
        self.fast = fast
        self.norms = norms
        self.result = Forward(Tape(opset_of(proto)))
        self.moving = set(trained)
        tape, stored = self.result.tape, weights(proto)
        for value in proto.graph.input:
            if value.name not in stored:
                tensor = tape.input(value.name, shapes.shapes[value.name], value.type.tensor_type.elem_type)
                self.result.inputs[value.name] = tensor
        for name in stored:
            if name in self.moving:
                self.result.weights[name] = self._input(name, stored[name])
            else:
                tape.constant(stored[name], name)

    def add(self, node: NodeProto) -> None:
        """Append a node; one that depends only on constants and sizes becomes a constant."""
        tape = self.result.tape
        constant = self.moving.isdisjoint(node.input) or node.op_type in OF_SHAPE
        if constant and all(o in self.shapes.values for o in node.output if o):
            for name in filter(None, node.output):
                tape.constant(self.shapes.values[name], name)
            return
        copy = NodeProto()
        copy.CopyFrom(node)
        for name in filter(None, node.output):
            if name not in self.shapes.shapes or name not in self.shapes.types:
                cause = f"the shape of operator {node.op_type}'s output is unknown"
                raise TrainingError("OP902", cause, where=describe(node))
            tape.know(name, self.shapes.shapes[name], self.shapes.types[name])
            self.moving.add(name)
        if node.op_type == "BatchNormalization" and self.norms == "batch" and len(node.output) == 1:
            self._use_batch_moments(copy)
        elif (write := card_of(node.domain, node.op_type).written_out) is not None:
            self._write_out(copy, write)
        elif self.fast and is_small(op := GradientNode(copy, tape)):
            self._replace(copy, [as_product(op)])
        else:
            tape.nodes.append(copy)

    def _write_out(self, node: NodeProto, write: WrittenOut) -> None:
        """Replace a node by simpler operators."""
        try:
            made = write(GradientNode(node, self.result.tape))
        except (LookupError, NotImplementedError) as error:
            cause = f"operator {node.op_type} can't be differentiated in this form: {error}"
            raise TrainingError("OP902", cause, where=describe(node)) from error
        self._replace(node, made)

    def _replace(self, node: NodeProto, made: Sequence[Tensor]) -> None:
        """Rename other tensors to a node's outputs."""
        for name, tensor in zip(node.output, made, strict=False):
            if name:
                node = helper.make_node("Identity", [tensor.name], [name], name=f"{name}_written")
                self.result.tape.nodes.append(node)

    def _input(self, name: str, value: NDArray[Any]) -> Tensor:
        return self.result.tape.input(name, value.shape, helper.np_dtype_to_tensor_dtype(value.dtype))

    def _use_batch_moments(self, node: NodeProto) -> None:
        """Make a normalization use the batch's moments, and update the running ones.

        Running variances follow the unbiased estimate, as in PyTorch.
        """
        tape, op = self.result.tape, GradientNode(node, self.result.tape)
        momentum, epsilon, x = op.attr("momentum", 0.9), op.attr("epsilon", 1e-5), op.x()
        running = [self._running(name) for name in node.input[3:5]]
        moments = (_fused if self.fast else _written_out)(tape, node, epsilon)
        count = x.size // x.shape[1]
        corrections = (1.0, count / max(count - 1, 1))
        for old, moment, correction in zip(running, moments, corrections, strict=True):
            if old.name in self.result.statistics:
                self.result.updates[old.name] = old * momentum + moment * ((1 - momentum) * correction)

    def _running(self, name: str) -> Tensor:
        """Make a running statistic an input, unless it is computed."""
        tape = self.result.tape
        if name in tape.constants:
            del tape.constants[name]
            tape.inputs.append(tape[name])
            self.result.statistics[name] = tape[name]
        return tape[name]


def _fused(tape: Tape, node: NodeProto, epsilon: float) -> tuple[Tensor, Tensor]:
    """Append a normalization in training mode; return the batch's mean and variance, its outputs at momentum 0.

    ONNX Runtime overwrites the inputs of running moments, even if they belong to the caller: pass copies, whose values
    don't matter.
    """
    shape, dtype = tape[node.input[1]].shape, tape[node.input[1]].dtype
    moments = [tape.know(tape.unique(f"{node.output[0]}.{m}"), shape, dtype) for m in ("mean", "variance")]
    for place in (3, 4):
        node.input[place] = (tape[node.input[place]] * 0.0).name
    del node.attribute[:]
    attributes = {"epsilon": epsilon, "momentum": 0.0, "training_mode": 1}
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    node.output.extend(m.name for m in moments)
    tape.nodes.append(node)
    return moments[0], moments[1]


def _written_out(tape: Tape, node: NodeProto, epsilon: float) -> tuple[Tensor, Tensor]:
    """Append a normalization as formulas, for providers that don't support the training mode."""
    x, scale, shift = (tape[name] for name in node.input[:3])
    others = [a for a in range(x.rank) if a != 1]
    per_channel = (1, -1, *[1] * (x.rank - 2))
    mean = x.mean(others)
    centered = x - mean
    variance = (centered * centered).mean(others)
    factor = scale.reshape(per_channel) / (variance + epsilon).op("Sqrt")
    result = centered * factor + shift.reshape(per_channel)
    tape.nodes.append(helper.make_node("Identity", [result.name], [node.output[0]], name=f"{node.output[0]}_written"))
    return mean.reshape(scale.shape), variance.reshape(scale.shape)


def feeds_of(forward: Forward, proto: ModelProto) -> dict[str, NDArray[Any]]:
    """Return the initial weights and running statistics of a model."""
    stored = weights(single_precision(proto))
    return {name: np.array(stored[name]) for name in (*forward.weights, *forward.statistics)}


_LARGEST = 64 * 64  # pairs of an input and an output position


def is_small(op: GradientNode) -> bool:
    """Whether a node is a depthwise convolution of maps small enough to be written as a matrix product."""
    if op.node.op_type != "Conv":
        return False
    x, w = op.x(), op.x(1)
    depthwise = w.shape[1] == 1 and w.shape[0] == op.attr("group", 1) == x.shape[1] > 1
    return depthwise and prod(x.shape[2:]) * prod(op.y().shape[2:]) <= _LARGEST


def as_product(op: GradientNode) -> Tensor:
    """Append the product of each channel's maps with its kernel written as a matrix, most of it zeros."""
    x, w, shape = op.x(0), op.x(1), op.y().shape
    window = Window.of(op, op.x().shape[2:], w.shape[2:], shape[2:])
    n, channels = shape[:2]
    size, out = prod(window.size), prod(window.out)
    matrices = w.reshape((channels, -1)) @ x.like(_places(window))
    rows = x.reshape((n, channels, size)).transpose([1, 0, 2])
    found = (rows @ matrices.reshape((channels, size, out))).transpose([1, 0, 2]).reshape(shape)
    return found + op.x(2).reshape((1, -1, *[1] * (found.rank - 2))) if op.has(2) else found


def _places(window: Window) -> NDArray[np.float32]:
    """Return which input and output positions each tap of the kernel connects, [taps, inputs * outputs]."""
    found = np.zeros((*window.kernel, *window.size, *window.out), np.float32)
    axes = list(zip(window.before, window.strides, window.dilations, window.size, strict=True))
    for tap in product(*map(range, window.kernel)):
        for out in product(*map(range, window.out)):
            at = [s * o + d * t - b for (b, s, d, _), o, t in zip(axes, out, tap, strict=True)]
            if all(0 <= a < size for a, (_, _, _, size) in zip(at, axes, strict=True)):
                found[(*tap, *at, *out)] = 1
    return found.reshape(prod(window.kernel), -1)


def output_of(forward: Forward, name: str) -> Tensor:
    """Return a tensor of the forward pass by its name.

    Raises:
        TrainingError: there is none (OP904).
    """
    if name not in forward.tape:
        raise TrainingError("OP904", f"the model has no tensor {name!r}", hint="see the command `inspect`")
    return forward.tape[name]


def scores_of(forward: Forward, proto: ModelProto, output: str) -> Tensor:
    """Return an output's scores of classes, [n, classes, ...].

    Raises:
        TrainingError: there is no such tensor (OP904).
    """
    return as_classes(raw_scores(forward, proto, output), None)


def raw_scores(forward: Forward, proto: ModelProto, output: str) -> Tensor:
    """Return the scores before a Softmax, or the logarithm of its output if the conversion lost their name."""
    name = scores_before(proto, output)
    if name in forward.tape:
        return forward.tape[name]
    probabilities = output_of(forward, output)
    return probabilities.op("Max", 1e-12).op("Log")
