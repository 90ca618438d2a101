"""Walk through a graph once, node by node: channel ids flow along, and the operators' rules tie and pin them."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto
from onnx.numpy_helper import to_array

from onnxprune.channels.ledger import Pin, fresh_value
from onnxprune.channels.values import Value
from onnxprune.model.bodies import in_body, is_body_input, is_open
from onnxprune.model.checks import captured_names
from onnxprune.model.graph import GraphIndex, opsets_of, owned_weights
from onnxprune.model.tensors import is_parameter
from onnxprune.operators.card import Card, cards, operator_key
from onnxprune.operators.traced import ShapeUnknown, TraceNode, Walk
from onnxprune.settings.planning import Policies
from onnxprune.settings.reading import either
from onnxprune.shapes import Branches, Shapes, concretize, concretize_otherwise
from onnxprune.trace.attention import attention_nodes
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.solve import solve
from onnxprune.trace.states import close_states, find_states, open_states


def trace(
    proto: ModelProto,
    input_shapes: Mapping[str, Sequence[int] | int] | None = None,
    *,
    shapes: Shapes | None = None,
    policies: Policies | None = None,
    **options: Any,
) -> ChannelGraph:
    """Find which channels of a model can only leave together.

    Args:
        proto: a normalized model (`onnxprune.normalize`).
        input_shapes: sizes for inputs with symbolic dimensions, where the default ones don't fit.
        shapes: concretized shapes, if they are known already.
        policies: what is removed together.
        **options: fields of `Policies`, as an alternative.

    Returns:
        The channel dependencies.

    Raises:
        ModelError: the input shapes contradict the model.
        PlanError: a policy isn't allowed (OP303), or states can't be paired (OP316).
    """
    policies = either(Policies, policies, options).settled()
    shapes = concretize(proto, input_shapes) if shapes is None else shapes
    with _uncollected():
        walk = _Tracer(proto, shapes, policies)
        walk.run()
        policies = replace(policies, state=tuple((state.input, state.output) for state in walk.states))
        return solve(proto, shapes, walk.values, walk.channels, policies, walk.states)


def retrace(proto: ModelProto, before: ChannelGraph) -> ChannelGraph:
    """Trace a changed model at the input sizes and by the policies of the one before."""
    return trace(proto, shapes=concretize(proto, before.shapes.inputs), policies=before.policies)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend garbage collection: a trace makes many small objects that live on, and hardly any cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_UNKNOWN = Card("")


class _Tracer(Walk):
    def __init__(self, proto: ModelProto, shapes: Shapes, policies: Policies) -> None:
        assert policies.attention is not None
        assert policies.grouped is not None
        super().__init__(shapes.shapes, policies.grouped, policies.attention)
        self.proto = proto
        self.shapes = shapes
        self.values: dict[str, Value] = {}
        self.initializers = {t.name: t for t in proto.graph.initializer}
        self.versions = opsets_of(proto)
        self.parameters: dict[str, str] = {}
        self.states = find_states(proto, shapes, policies)
        self.uniform = policies.kv_uniform
        self.in_attention = attention_nodes(proto.graph)
        self.uses = GraphIndex(proto.graph).uses
        self.owned = owned_weights(proto.graph, self.uses)

    def run(self) -> None:
        for entry in self.proto.graph.input:
            if entry.name in self.known and entry.name not in self.initializers:
                origin = f'graph input "{entry.name}"'
                self.values[entry.name] = Value(self.known[entry.name], origin=origin)
        open_states(self, self.states, self.values, self.proto.graph, uniform=self.uniform)
        table = cards()
        for index, node in enumerate(self.proto.graph.node):
            self.step(index, node, table)
        for name, reader in self.parameters.items():
            if name in self.values:
                self.pin(self.values[name], Pin("OP209", reader, "is read as a parameter"))
        close_states(self, self.states, self.values)
        resized = {state.output for state in self.states}
        for entry in self.proto.graph.output:
            if entry.name in self.values and entry.name not in resized:
                reason = "its size is what the model's users expect"
                self.pin(self.values[entry.name], Pin("OP202", f'graph output "{entry.name}"', reason))

    def step(self, index: int, node: NodeProto, table: Mapping[str, Card]) -> None:
        version = self.versions.get(node.domain or "ai.onnx", 1)
        policy = self.policy if index in self.in_attention else None
        card = table.get(operator_key(node.domain, node.op_type), _UNKNOWN)
        op = TraceNode(self, index, node, version, attention=policy, records=card.contracts and card.macs is None)
        try:
            if any(a.type in _SUBGRAPHS for a in node.attribute) and not is_open(node):
                self.capture(op)
            elif card.trace is None and "trace" not in card.reasons:
                hint = "the command `rules` lists the known operators"
                op.give_up("OP203", f"no rule for operator {operator_key(node.domain, node.op_type)}", hint)
            elif card.trace is None:
                op.give_up("OP211", card.reasons["trace"])
            else:
                card.trace(op)
                self.check_outputs(op)
                for name in set(node.input[1:]) - op.looked_at:  # sizes and indices only known at run time
                    self.parameters.setdefault(name, name)
        except ShapeUnknown as unknown:
            op.outputs.clear()
            op.give_up("OP213", f'the shape of "{unknown}" is not known', self.remedy)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Models are untrusted: a node may lack what its operator's definition asks for.
            op.outputs.clear()
            self.misfit(op, str(error))
        constant = not is_body_input(node) and all(
            n in self.initializers or self.is_constant(n) for n in node.input if n
        )
        for i, value in op.outputs.items():
            if node.output[i]:
                self.values[node.output[i]] = value if value.constant == constant else replace(value, constant=constant)

    @property
    def remedy(self) -> str:
        """What may help where a shape is unknown: only values tell it, and a run on generated inputs didn't."""
        why = f"{self.shapes.problem}; " if self.shapes.problem else ""
        return f"{why}give inputs that the model can run on, with `inputs` or `data`"

    def misfit(self, op: TraceNode, cause: str) -> None:
        """Pin what touches a node that doesn't fit its operator; in a body of If it may never run."""
        if in_body(op.node):
            hint = "give sizes on which every body runs, with `input_shapes`"
            op.give_up("OP207", "it is in a body that doesn't run on such shapes", hint)
        else:
            op.give_up("OP215", f"doesn't fit its operator's definition ({cause})")

    def is_constant(self, name: str) -> bool:
        return name in self.values and self.values[name].constant

    def check_outputs(self, op: TraceNode) -> None:
        """Pin what a node touches if an output is read that its rule doesn't set."""
        unknown = [n for i, n in enumerate(op.node.output) if n in self.uses and i not in op.outputs]
        if unknown and op.outputs and not op.is_known(unknown[0]):
            raise ShapeUnknown(unknown[0])
        if unknown:
            op.outputs.clear()
            op.give_up("OP211", f'its output "{unknown[0]}" is left alone')
        if any(v.shape != self.known.get(op.node.output[i], v.shape) for i, v in op.outputs.items()):
            op.outputs.clear()
            self.misfit(op, "its outputs have other shapes")

    def look(self, name: str) -> Value:
        """Return what is known about a tensor; weights get their ids when they are first read as data."""
        if name not in self.values:
            if name in self.initializers:
                self.values[name] = fresh_value(tuple(self.initializers[name].dims), self.channels)
                if is_parameter(self.initializers[name]):
                    self.parameters.setdefault(name, name)
            else:
                self.values[name] = super().look(name)
        return self.values[name]

    def read(self, name: str) -> NDArray[Any] | None:
        """Return a parameter's value, and pin it."""
        self.parameters.setdefault(name, name)
        if name in self.shapes.values:
            return self.shapes.values[name]
        return to_array(self.initializers[name]) if name in self.initializers else None

    def varies(self, name: str) -> NDArray[np.bool_]:
        """Return which entries of a parameter depend on the sizes of the model's inputs."""
        here = self.shapes.values.get(name, np.zeros(()))  # a parameter of more elements is an initializer
        if name in self.initializers or name in self.shapes.static or not self.shapes.symbols:
            return np.zeros(here.shape, dtype=bool)
        there = self.elsewhere.get(name)
        if there is None or there.shape != here.shape:
            return np.ones(here.shape, dtype=bool)
        return np.asarray(here != there)

    def never(self, node: str) -> Collection[str]:
        """Return the bodies of an opened If that no input can lead to."""
        return self.branches.never(node)

    @cached_property
    def branches(self) -> Branches:
        """What is certain about Ifs; found only if needed."""
        return Branches(self.proto)

    @cached_property
    def elsewhere(self) -> Mapping[str, NDArray[Any]]:
        """Known values at other sizes of the symbolic dimensions; empty if no other sizes fit."""
        there = concretize_otherwise(self.proto, self.shapes)
        return {} if there is None else there.values

    def capture(self, op: TraceNode) -> None:
        """Pin what a node with subgraphs reads, including what its bodies capture."""
        op.give_up("OP207", f"goes into {op.label} or comes out of its body, which runs as a separate graph")
        for name in sorted(captured_names(op.node)):
            if name in self.initializers or name in self.values:
                self.pin(self.look(name), Pin("OP207", op.label, f"captured by the body of {op.label}"))

    def pin(self, value: Value, pin: Pin) -> None:
        for factor in value.factors:
            self.channels.pin(factor.ids, pin)
