"""Reverse-mode differentiation: visit nodes in reverse order; each rule appends the gradients of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, helper, numpy_helper

from onnxprune.errors import TrainingError
from onnxprune.model.checks import describe
from onnxprune.model.graph import behind
from onnxprune.model.tape import REAL, Tape, Tensor
from onnxprune.operators.card import card_of, operator_key
from onnxprune.operators.differentiated import GradientNode


def dependents(tape: Tape, wrt: Iterable[str]) -> set[str]:
    """Return the tensors of a graph through which gradients may reach some tensors, including these.

    Integers and booleans carry no gradient. Quantized numbers are the exception: what QuantizeLinear makes, and what is
    computed from it in the same type (`onnxprune.operators.quantized`).
    """
    moving = set(wrt)
    for node in tape.nodes:
        card, read = card_of(node.domain, node.op_type), [name for name in node.input if name in moving]
        if card.flat or not read:
            continue
        types = {tape[name].dtype for name in read}
        for name in node.output:
            if (
                name
                and name not in tape.stopped
                and ((dtype := tape[name].dtype) in REAL or card.quantizes or dtype in types)
            ):
                moving.add(name)
    return moving


def gradients(tape: Tape, loss: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """Append the gradients of a scalar with respect to tensors.

    Args:
        tape: the graph; its nodes so far are the forward pass.
        loss: a tensor of one element.
        wrt: tensors of the forward pass.

    Returns:
        A gradient for each, zeros where the scalar doesn't depend on it.

    Raises:
        TrainingError: an operator has no rule (OP901), or none for this form of it (OP902).
    """
    found = reached(tape, loss, wrt)
    return [found[t.name] if t.name in found else t.zeros() for t in wrt]


def reached(tape: Tape, loss: Tensor, wrt: Sequence[Tensor]) -> dict[str, Tensor]:
    """Append the gradients of a scalar; return those of the tensors that it depends on, by name.

    Raises:
        TrainingError: an operator has no rule (OP901), or none for this form of it (OP902).
    """
    forward = list(tape.nodes)
    moving = dependents(tape, [t.name for t in wrt])
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
    return {t.name: found for t in wrt if (found := total(t.name)) is not None}


def _apply(op: GradientNode, dy: Tensor) -> Tensor:
    card, operator = card_of(op.node.domain, op.node.op_type), operator_key(op.node.domain, op.node.op_type)
    rule, where = card.gradient(op.index), describe(op.node)
    if rule is None:
        cause = f"operator {operator} can't be differentiated with respect to its input {op.index}"
        hint = "freeze what comes before it, or train with another `backend`"
        raise TrainingError("OP901", cause, where=where, hint=hint)
    try:
        return rule(op, dy).sum_to(op.x(op.index).shape)
    except (LookupError, NotImplementedError) as error:
        cause = f"operator {operator} can't be differentiated in this form: {error}"
        raise TrainingError("OP902", cause, where=where) from error


_IR_VERSION = 10


def model_of(tape: Tape, outputs: Mapping[str, Tensor], name: str = "step") -> ModelProto:
    """Return a model of the nodes that some outputs need.

    Args:
        tape: the graph.
        outputs: the output tensors, by the names they get.
        name: the graph's name.
    """
    nodes = behind((tensor.name for tensor in outputs.values()), tape.nodes)
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
