"""Find the part of a model that ONNX Runtime's CPU provider runs, where it refuses the whole.

It lacks operators of other tools (TensorRT plug-ins, onnxruntime-extensions), and some of its own for some types
(convolutions of doubles, most of bfloat16). Each node is offered to it alone. The model is then cut at the inputs of
the nodes that it refuses, and what these nodes would make is fed where its type and shape are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import make_tensor_type_proto

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.model.bodies import is_body_input, is_open
from onnxprune.model.graph import reads
from onnxprune.model.session import session
from onnxprune.shapes.known import NodeStep, model_of, plain_domain, step_of
from onnxprune.shapes.result import Shapes, concretize


@dataclass(frozen=True, slots=True)
class UnrunNode:
    """A node that isn't run.

    Attributes:
        node: its name, or that of its first output.
        operator: its operator, after its domain unless that is onnx's own.
        cause: why: ONNX Runtime's words, or what it reads.
    """

    node: str
    operator: str
    cause: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A model without some of its nodes.

    Attributes:
        outputs: the tensors that it ends at: outputs of the model, and what the missing nodes read.
        fed: tensors that missing nodes make and others read, which are fed.
        missing: the missing nodes.
        unmade: all tensors that aren't made.
    """

    outputs: tuple[str, ...]
    fed: tuple[str, ...] = ()
    missing: tuple[UnrunNode, ...] = ()
    unmade: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RunnablePart:
    """What runs of a model that ONNX Runtime refuses as a whole.

    Attributes:
        front: what is computed from the model's inputs alone.
        islands: this and every part behind a refused node, with what that node would make as inputs.
    """

    front: Cut
    islands: Cut


def runnable_part(model: ModelProto, shapes: Shapes) -> RunnablePart | None:
    """Find the part of a model that ONNX Runtime's CPU provider runs.

    Args:
        model: a model in topological order.
        shapes: what is known of its tensors.

    Returns:
        The part; None if all of the model runs, or if it isn't its operators and types that are refused.
    """
    try:
        session(model, optimize=False)
    except OnnxPruneError:
        refused = refused_nodes(model, shapes)
        return (
            RunnablePart(*(cut_at(model, refused, shapes if feed else None) for feed in (False, True)))
            if refused
            else None
        )
    return None  # a node alone can be refused where all of them are not


def runnable_front(model: ModelProto) -> Cut | None:
    """Find what is computed from a model's inputs, if ONNX Runtime refuses other nodes; None if all or nothing is."""
    with suppress(ModelError):
        part = runnable_part(model, concretize(model))
        return part.front if part is not None and part.front.outputs else None
    return None


def refused_nodes(model: ModelProto, shapes: Shapes) -> dict[int, str]:
    """Return the positions of nodes that ONNX Runtime's CPU provider refuses, and its reasons."""
    constants = {t.name: t for t in model.graph.initializer}
    verdicts: dict[object, str] = {}
    refused = {}
    for position, node in enumerate(model.graph.node):
        step = step_of(node)
        if (
            is_open(node)
            or is_body_input(node)
            or not all(name in shapes.types or name in constants for name in step.reads)
        ):
            continue
        bare = NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
        kinds = tuple((name in constants, _type(name, shapes, constants)) for name in step.reads)
        key = bare.SerializeToString(), tuple(map(bool, node.input)), len(node.output), kinds
        if key not in verdicts:
            verdicts[key] = _verdict(model, step, shapes, constants)
        if verdicts[key]:
            refused[position] = verdicts[key]
    return refused


def cut_at(model: ModelProto, nodes: Mapping[int, str], shapes: Shapes | None) -> Cut:
    """Return a model without some nodes, and without what can't be computed then.

    Args:
        model: a model in topological order.
        nodes: the positions of the nodes, with reasons.
        shapes: what is known of the model's tensors. What the nodes make is fed where its type and shape are known;
            None if nothing is fed.
    """
    unmade, fed, made = set[str](), dict[str, None](), set[str]()
    ends, missing = dict[str, None](), []
    for position, node in enumerate(model.graph.node):
        lacks = [name for name in reads(node) if name in unmade and name not in fed]
        cause = nodes.get(position)
        if cause is None and lacks:
            if shapes is not None and all(name in shapes.shapes and name in shapes.types for name in lacks):
                fed.update(dict.fromkeys(lacks))
            else:
                cause = f'it reads "{lacks[0]}", which isn\'t computed'
        outputs = [name for name in node.output if name]
        if cause is None:
            made.update(outputs)
            continue
        operator = f"{plain_domain(node.domain)}:{node.op_type}".lstrip(":")
        missing.append(UnrunNode(node.name or outputs[0], operator, cause))
        unmade.update(outputs)
        ends.update(dict.fromkeys(name for name in reads(node) if name in made))
    wanted = dict.fromkeys(o.name for o in model.graph.output if o.name not in unmade) | ends
    return Cut(tuple(wanted), tuple(fed), tuple(missing), frozenset(unmade))


def operators(missing: Iterable[UnrunNode]) -> str:
    """Return the operators of nodes in words, each with the node if there is one."""
    names: dict[str, list[str]] = {}
    for node in missing:
        names.setdefault(node.operator, []).append(node.node)
    return ", ".join(f'{op} "{own[0]}"' if len(own) == 1 else f"{op} ({len(own)} nodes)" for op, own in names.items())


def _type(name: str, shapes: Shapes, constants: Mapping[str, TensorProto]) -> int:
    return constants[name].data_type if name in constants else shapes.types[name]


def _verdict(model: ModelProto, step: NodeStep, shapes: Shapes, constants: Mapping[str, TensorProto]) -> str:
    """Return why ONNX Runtime refuses a node alone; empty if it doesn't."""
    small = {n for n in step.reads if n in shapes.values and n in constants}
    alone = model_of(model, [step.node], dict.fromkeys(n for n in step.reads if n not in small), step.outputs)
    for entry in alone.graph.input:
        entry.type.CopyFrom(make_tensor_type_proto(_type(entry.name, shapes, constants), None))
    alone.graph.initializer.extend(constants[name] for name in sorted(small))
    try:
        session(alone, optimize=False)
    except OnnxPruneError as error:
        return error.cause.partition(": ")[2].removeprefix("Fatal error: ") or error.cause
    return ""
