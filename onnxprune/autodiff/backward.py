"""Reverse-mode differentiation: nodes are gone through backwards, and each rule appends the gradients of its inputs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.errors import TrainingError
from onnxprune.model.checks import describe
from onnxprune.model.tape import Tape, Tensor
from onnxprune.operators.card import card_of, operator_key
from onnxprune.operators.differentiated import GradientNode


def dependents(nodes: Iterable[NodeProto], wrt: Iterable[str], still: Container[str] = ()) -> set[str]:
    """Return the tensors through which a gradient may reach some tensors, those included, but for ``still``."""
    moving = set(wrt)
    for node in nodes:
        if not moving.isdisjoint(node.input) and not card_of(node.domain, node.op_type).flat:
            moving.update(name for name in node.output if name and name not in still)
    return moving


def gradients(tape: Tape, loss: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """Append the gradients of a number with respect to tensors.

    Args:
        tape: the graph; what is in it is the forward pass.
        loss: a tensor of one element.
        wrt: tensors of the forward pass.

    Returns:
        A gradient for each, zeros where the number doesn't depend on it.

    Raises:
        TrainingError: an operator has no rule (OP901), or none for the way in which it is used (OP902).
    """
    forward = list(tape.nodes)
    moving = dependents(forward, [t.name for t in wrt], tape.stopped)
    parts: dict[str, list[Tensor]] = {loss.name: [loss.like(1.0).expand(loss.shape)]}

    def total(name: str) -> Tensor | None:
        found = parts.get(name)
        if found and len(found) > 1:
            found[:] = [tape.emit("Sum", *found)]
        return found[0] if found else None

    for node in reversed(forward):
        if card_of(node.domain, node.op_type).flat or not any(name in parts and name in moving for name in node.output):
            continue
        for index, name in enumerate(node.input):
            if name in moving:
                dy = total(node.output[0])
                op = GradientNode(node, tape, index, total)
                parts.setdefault(name, []).append(_apply(op, op.dy(0) if dy is None else dy))
    return [total(t.name) or t.zeros() for t in wrt]


def _apply(op: GradientNode, dy: Tensor) -> Tensor:
    card, operator = card_of(op.node.domain, op.node.op_type), operator_key(op.node.domain, op.node.op_type)
    rule, where = card.gradient(op.index), describe(op.node)
    if rule is None:
        cause = f"operator {operator} can't be differentiated with respect to its input {op.index}"
        hint = "freeze what comes before it, or train with another backend (--backend module:function)"
        raise TrainingError("OP901", cause, where=where, hint=hint)
    try:
        return rule(op, dy).sum_to(op.x(op.index).shape)
    except (LookupError, NotImplementedError) as error:
        cause = f"operator {operator} can't be differentiated in this form: {error}"
        raise TrainingError("OP902", cause, where=where) from error


def needed(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes that some tensors depend on, in their order."""
    wanted = set(outputs)
    live = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            live.append(node)
    return live[::-1]


_IR_VERSION = 10


def model_of(tape: Tape, outputs: Mapping[str, Tensor], name: str = "step") -> ModelProto:
    """Make a model of what some outputs need.

    Args:
        tape: the graph.
        outputs: tensors by the names that they get as outputs.
        name: the graph's name.
    """
    nodes = needed(tape.nodes, [tensor.name for tensor in outputs.values()])
    nodes += [helper.make_node("Identity", [t.name], [n]) for n, t in outputs.items() if n != t.name]
    read = {n for node in nodes for n in node.input} | {t.name for t in outputs.values()}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(t.name, t.dtype, t.shape) for t in tape.inputs if t.name in read],
        [helper.make_tensor_value_info(n, t.dtype, t.shape) for n, t in outputs.items()],
        [numpy_helper.from_array(value, n) for n, value in tape.constants.items() if n in read],
    )
    domains = sorted({node.domain for node in nodes} - {"", "ai.onnx"})
    opsets = [helper.make_opsetid("", tape.opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
