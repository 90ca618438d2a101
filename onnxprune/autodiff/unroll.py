"""Write out loops step by step, since gradients are taken of graphs without bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import TrainingError
from onnxprune.model.bodies import carried, is_body_input, is_open, stacked, unmarked
from onnxprune.model.checks import describe
from onnxprune.model.graph import attribute, opset_of, with_nodes
from onnxprune.shapes import Shapes
from onnxprune.shapes.loops import step_counts

_MOST_STEPS = 512
_MOST_NODES = 2**17


def unrolled(proto: ModelProto, shapes: Shapes) -> ModelProto:
    """Return a normalized model with its loops written out, for the sizes that its shapes are known at.

    Raises:
        TrainingError: a loop's number of steps depends on values or is too large, or its body has branches (OP902).
    """
    work = _Unroller(step_counts(proto.graph, shapes.shapes, shapes.values), opset_of(proto))
    nodes = list(work.written(list(proto.graph.node)))
    return with_nodes(proto, nodes, [*proto.graph.initializer, *work.constants])


class _Unroller:
    def __init__(self, steps: dict[str, int | None], opset: int) -> None:
        self.constants: list[TensorProto] = []
        self._opset = opset
        self._steps = steps
        self._count = 0

    def written(self, nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
        """Yield nodes, with each loop among them replaced by its steps."""
        ends = {node.input[0]: i for i, node in enumerate(nodes) if is_open(node) and node.op_type != "If"}
        at = 0
        while at < len(nodes):
            if is_body_input(nodes[at]):
                end = ends[nodes[at].output[0]]
                body = [unmarked(node) for node in self.written(nodes[at + 1 : end])]
                yield from self._loop(nodes[at], body, nodes[end])
                at = end
            else:
                yield nodes[at]
            at += 1

    def _loop(self, entry: NodeProto, body: Sequence[NodeProto], node: NodeProto) -> Iterator[NodeProto]:
        steps = self._checked(node, body)
        counters, axes = attribute(entry, "counters", []), attribute(entry, "axes", [])
        first = len(entry.input) - len(axes)
        backwards = attribute(node, "scan_input_directions") or [0] * len(axes)
        names = dict(zip(entry.output[len(counters) : first], entry.input[len(counters) : first], strict=True))
        seen: dict[int, list[str]] = {i: [] for _, i, _ in stacked(node)}
        for step in range(steps):
            if counters:
                names[entry.output[0]] = self._constant(np.full([1] * counters[0], step, np.int64))
                names[entry.output[1]] = self._constant(np.full([1] * counters[1], True))
            for given, name, axis, back in zip(entry.input[first:], entry.output[first:], axes, backwards, strict=True):
                place = self._constant(np.array(steps - 1 - step if back else step, np.int64))
                names[name] = self._fresh()
                yield helper.make_node("Gather", [given, place], [names[name]], name=names[name], axis=axis)
            for inner in body:
                yield self._copied(inner, names)
            for j, i, _ in stacked(node):
                seen[i].append(names.get(node.input[j], node.input[j]))
            after = {node.input[a]: names.get(node.input[b], node.input[b]) for a, b, _ in carried(node)}
            names.update(after)
        for a, _, i in carried(node):
            if i < len(node.output) and node.output[i]:
                yield helper.make_node("Identity", [names[node.input[a]]], [node.output[i]], name=node.output[i])
        directions = attribute(node, "scan_output_directions") or [0] * len(seen)
        for (_, i, axis), back in zip(stacked(node), directions, strict=True):
            if i < len(node.output) and node.output[i]:
                yield from self._stack(seen[i][::-1] if back else seen[i], axis, node.output[i])

    def _checked(self, node: NodeProto, body: Sequence[NodeProto]) -> int:
        """Return how many steps a loop takes, if it can be written out."""
        steps = self._steps[node.name]
        if steps is None:
            why = "its number of steps depends on values"
        elif not 0 < steps <= _MOST_STEPS or self._count + steps * len(body) > _MOST_NODES:
            why = f"its {steps} steps would have to be written out, and {_MOST_STEPS} is the limit"
        elif any(is_open(inner) for inner in body):
            why = "its body has branches"
        else:
            return steps
        cause = f"operator {node.op_type} can't be differentiated in this form: {why}"
        raise TrainingError("OP902", cause, where=describe(node))

    def _stack(self, parts: Sequence[str], axis: int, output: str) -> Iterator[NodeProto]:
        raised = [self._fresh() for _ in parts]
        axes = [self._constant(np.array([axis], np.int64))] if self._opset >= 13 else []
        for part, name in zip(parts, raised, strict=True):
            node = helper.make_node("Unsqueeze", [part, *axes], [name], name=name)
            if not axes:
                node.attribute.append(helper.make_attribute("axes", [axis]))
            yield node
        yield helper.make_node("Concat", raised, [output], name=output, axis=axis)

    def _copied(self, node: NodeProto, names: dict[str, str]) -> NodeProto:
        """Return a copy of a body's node for one step, and add its outputs to the names of this step."""
        copy = NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [names.get(name, name) for name in node.input]
        names.update((name, self._fresh()) for name in node.output if name)
        copy.output[:] = [names.get(name, name) for name in node.output]
        copy.name = self._fresh()
        return copy

    def _fresh(self) -> str:
        self._count += 1
        return f"::step{self._count}"

    def _constant(self, value: np.ndarray) -> str:
        name = self._fresh()
        self.constants.append(numpy_helper.from_array(value, name))
        return name
