"""Loops and Scans whose bodies are opened (`onnxprune.model.bodies`): types at the border, and the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, TypeProto
from onnx.helper import make_tensor_type_proto

from onnxprune.model.bodies import carried, is_body_input, is_open, loops_around, stacked
from onnxprune.model.graph import GraphIndex, attribute
from onnxprune.shapes.known import Known, Shape

_COUNTERS = (TensorProto.INT64, TensorProto.BOOL)  # of a step, and whether to go on


def input_types(entry: NodeProto, known: Known, changing: Collection[str]) -> Iterator[tuple[str, TypeProto]]:
    """Yield the types of a body's inputs.

    Args:
        entry: the node that gives them.
        known: what is known of what it reads.
        changing: the states among them whose shape isn't the same at every step.
    """
    counters, axes = attribute(entry, "counters", []), attribute(entry, "axes", [])
    first_sliced = len(entry.input) - len(axes)
    for i, (given, name) in enumerate(zip(entry.input, entry.output, strict=True)):
        kind = known.types.get(given)
        if i < len(counters):
            yield name, make_tensor_type_proto(_COUNTERS[i], [1] * counters[i])
        elif i >= first_sliced and given in known.shapes and kind is not None:
            shape = list(known.shapes[given])
            axis = axes[i - first_sliced]
            if -len(shape) <= axis < len(shape):
                del shape[axis]
                yield name, make_tensor_type_proto(kind.tensor_type.elem_type, shape)
        elif i < first_sliced and kind is not None:
            if name in changing:
                kind = make_tensor_type_proto(kind.tensor_type.elem_type, None)
            yield name, kind


def output_types(entry: NodeProto, node: NodeProto, known: Known, steps: int | None) -> Iterator[tuple[str, TypeProto]]:
    """Yield the types of a Loop's or Scan's outputs, as far as they are known.

    Args:
        entry: the node that gives its body's inputs.
        node: the Loop or Scan.
        known: what is known of the body's tensors.
        steps: the number of steps.
    """
    outputs = dict(enumerate(node.output))
    for before, after, i in carried(node):
        head, result = node.input[before], node.input[after]
        same = node.op_type == "Scan" or known.shapes.get(head) == known.shapes.get(result)
        if outputs.get(i) and head in known.shapes and same:
            yield outputs[i], known.types[head]
    for result_at, i, axis in stacked(node):
        result = node.input[result_at]
        if steps is not None and outputs.get(i) and result in known.shapes:
            shape = list(known.shapes[result])
            shape.insert(axis % (len(shape) + 1), steps)
            yield outputs[i], make_tensor_type_proto(known.types[result].tensor_type.elem_type, shape)


def step_count(
    entry: NodeProto,
    node: NodeProto,
    shapes: Mapping[str, Shape],
    values: Mapping[str, NDArray[Any]],
    source: Callable[[str], str],
) -> int | None:
    """Return how often the body of a Loop or Scan runs; None if that depends on more than the sizes of inputs.

    Args:
        entry: the node that gives its body's inputs.
        node: the Loop or Scan.
        shapes: the known shapes.
        values: the known values.
        source: returns the tensor that one is a copy of.
    """
    for given, axis in _sliced(entry):
        if given in shapes and -len(shapes[given]) <= axis < len(shapes[given]):
            return shapes[given][axis]
    for _, i, axis in stacked(node):
        shape = shapes.get(node.output[i]) if i < len(node.output) else None
        if shape and -len(shape) <= axis < len(shape):
            return shape[axis]
    if node.op_type != "Loop" or not entry.input[0] or entry.input[0] not in values:
        return None
    most, start, condition = values[entry.input[0]], entry.input[1], source(node.input[len(entry.output)])
    starts = not start or (start in values and bool(values[start].all()))
    goes_on = condition == entry.output[1] or (condition in values and bool(values[condition].all()))
    return max(0, int(most.item())) if most.size == 1 and starts and goes_on else None


def step_counts(
    graph: GraphProto, shapes: Mapping[str, Shape], values: Mapping[str, NDArray[Any]]
) -> dict[str, int | None]:
    """Return how often the body of each opened Loop and Scan runs, by its name, see `step_count`."""
    entries = {name: node for node in graph.node if is_body_input(node) for name in node.output}
    if not entries:
        return {}
    index = GraphIndex(graph)
    return {
        node.name: step_count(entries[node.input[0]], node, shapes, values, lambda t: index.source(t, ("Identity",)))
        for node in graph.node
        if is_open(node) and node.op_type != "If"
    }


def run_counts(graph: GraphProto, steps: Mapping[str, int | None]) -> list[int]:
    """Return how often each node runs in one run of the model, where unknown numbers of steps count as one."""
    if not steps:
        return [1] * len(graph.node)
    return [prod(n for name in loops if (n := steps[name]) is not None) for loops in loops_around(graph.node)]


def _sliced(entry: NodeProto) -> Iterator[tuple[str, int]]:
    axes = attribute(entry, "axes", [])
    return zip(entry.input[len(entry.input) - len(axes) :], axes, strict=True)
