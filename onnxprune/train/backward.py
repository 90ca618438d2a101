"""Reverse-mode differentiation: nodes are gone through backwards, and each rule appends the gradients of its inputs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from onnx import NodeProto

from onnxprune._validate import describe
from onnxprune.errors import TrainingError
from onnxprune.trace.registry import operator_key
from onnxprune.train.op import Op
from onnxprune.train.registry import find, is_flat
from onnxprune.train.tape import Tape
from onnxprune.train.tensor import Tensor


def dependents(nodes: Iterable[NodeProto], wrt: Iterable[str], still: Container[str] = ()) -> set[str]:
    """Return the tensors through which a gradient may reach some tensors, those included, but for ``still``."""
    moving = set(wrt)
    for node in nodes:
        if not moving.isdisjoint(node.input) and not is_flat(operator_key(node.domain, node.op_type)):
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
    moving = dependents(forward, [t.name for t in wrt], tape.still)
    parts: dict[str, list[Tensor]] = {loss.name: [loss.like(1.0).expand(loss.shape)]}

    def total(name: str) -> Tensor | None:
        found = parts.get(name)
        if found and len(found) > 1:
            found[:] = [tape.emit("Sum", *found)]
        return found[0] if found else None

    for node in reversed(forward):
        key = operator_key(node.domain, node.op_type)
        if is_flat(key) or not any(name in parts and name in moving for name in node.output):
            continue
        for index, name in enumerate(node.input):
            if name in moving:
                dy = total(node.output[0])
                op = Op(node, tape, index, total)
                parts.setdefault(name, []).append(_apply(op, key, op.dy(0) if dy is None else dy))
    return [total(t.name) or t.zeros() for t in wrt]


def _apply(op: Op, operator: str, dy: Tensor) -> Tensor:
    rule = find(operator, op.index)
    where = describe(op.node)
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
