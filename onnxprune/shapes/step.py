"""Nodes as the walk sees them, and models made of a few of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

from onnxprune._validate import DEFAULT_DOMAINS, captured_names, subgraphs
from onnxprune.shapes.known import Known


class Step(NamedTuple):
    """A node, with what the walk asks of it time and again."""

    node: NodeProto
    operator: str  # preceded by its domain, unless that is onnx's own
    reads: list[str]  # what its subgraphs capture included
    outputs: list[str]
    nested: bool  # whether it has subgraphs


def step_of(node: NodeProto) -> Step:
    """Look a node over."""
    nested = any(True for _ in subgraphs(node))
    reads = [name for name in node.input if name]
    if nested:
        reads += sorted(captured_names(node).difference(reads))
    operator = f"{plain_domain(node.domain)}:{node.op_type}".lstrip(":")
    return Step(node, operator, reads, [name for name in node.output if name], nested)


def plain_domain(name: str) -> str:
    """Give an operator domain its usual name: onnx's own has two."""
    return "" if name in DEFAULT_DOMAINS else name


def model_of(
    proto: ModelProto, nodes: Iterable[NodeProto], inputs: Iterable[str], outputs: Iterable[str]
) -> ModelProto:
    """Make a model of some of another's nodes."""
    return ModelProto(
        ir_version=max(proto.ir_version, 8),  # from 4 on, initialisers needn't be inputs
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=GraphProto(
            name="piece",
            node=nodes,
            input=[ValueInfoProto(name=name) for name in inputs],
            output=[ValueInfoProto(name=name) for name in outputs],
        ),
    )


def piece(proto: ModelProto, known: Known, steps: Sequence[Step], outputs: Sequence[str]) -> ModelProto:
    """Cut some nodes out as a model: what is known of the tensors they read is its input."""
    made = {name for step in steps for name in step.outputs}
    reads = dict.fromkeys(name for step in steps for name in step.reads if name not in made)
    fed = [name for name in reads if name not in known.values]
    model = model_of(proto, [step.node for step in steps], fed, outputs)
    for entry in model.graph.input:
        entry.type.CopyFrom(known.types.get(entry.name, TypeProto()))
    model.graph.initializer.extend(known.tensor(n) for n in reads if n in known.values)
    return model
