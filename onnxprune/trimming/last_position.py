"""Compute a decoder's logits for the last position only: that is all that generation reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.channels.values import Factor, Value
from onnxprune.errors import PlanError
from onnxprune.model.graph import GraphIndex, names_in, opset_of, opsets_of, unique, with_inputs, with_nodes
from onnxprune.operators.card import card_of
from onnxprune.operators.node import Node
from onnxprune.operators.traced import ShapeUnknown, TraceNode, Walk
from onnxprune.shapes import Shapes, concretize, concretize_otherwise, runnable_inputs
from onnxprune.trimming.proof import Arrays, Trimmed, compare

_AXIS = 1
_OPSET = 10  # Slice takes its bounds as inputs from then on


@dataclass(frozen=True, slots=True)
class _Head:
    """The layer that makes an output, and the nodes behind it.

    Attributes:
        start: what the layer reads.
        nodes: the layer, and the nodes from there to the output.
    """

    start: str
    nodes: tuple[NodeProto, ...]


def keep_last_position(
    proto: ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    inputs: Arrays | None = None,
    seed: int = 0,
) -> Trimmed:
    """Return a decoder that computes its logits for the last position only.

    A Slice is put in front of the layer that makes the logits, so that axis 1 of this output has size 1.

    Args:
        proto: the normalized model.
        input_shapes: sizes for inputs with symbolic dimensions.
        inputs: inputs for the proof; generated ones by default.
        seed: seed of generated inputs.

    Raises:
        PlanError: no output is made by a layer from each position by itself, or several are (OP318).
        VerificationError: the result isn't the original's last position (OP501).
        ModelError: the model can't be run.
    """
    shapes = concretize(proto, input_shapes)
    other = None if inputs or input_shapes else concretize_otherwise(proto, shapes)
    index, heads, reasons = GraphIndex(proto.graph), dict[str, _Head](), dict[str, str]()
    for output in index.outputs:
        head = _head(output, index)
        if not isinstance(head, str):
            longest = max(filter(None, (shapes, other)), key=lambda s: s.shapes.get(output, ()))
            head = _mixing(head, proto, longest) or head
        if isinstance(head, str):
            reasons[output] = head
        else:
            heads[output] = head
    if opset_of(proto) < _OPSET:
        raise PlanError("OP318", f"the last position can't be cut out: the opset is older than {_OPSET}")
    if len(heads) != 1:
        output, cause = next(iter(reasons.items()), ("", "the model has no outputs"))
        cause = f"outputs {', '.join(heads)} hold logits for each position" if heads else cause
        raise PlanError("OP318", f"the last position can't be cut out: {cause}", where=f'output "{output}"')
    ((output, head),) = heads.items()
    trimmed = _sliced(proto, head, output)

    def last(name: str, value: NDArray[Any]) -> NDArray[Any]:
        return value[:, -1:] if name == output else value

    error = 0.0
    for sizes in filter(None, (other, shapes)):
        data = runnable_inputs(proto, sizes.inputs, seed) if inputs is None else inputs
        error = max(error, compare(proto, trimmed, data, data, last))
    return Trimmed(trimmed, f'"{output}" is computed for the last position only', error, data)


def _head(output: str, index: GraphIndex) -> _Head | str:
    """Return the layer with weights that makes an output, or why there is none."""
    nodes: tuple[NodeProto, ...] = ()
    tensor = output
    while (node := index.makers.get(tensor)) is not None:
        if index.uses[tensor] > 1:
            return f'something else reads "{tensor}"'
        moving = [name for name in node.input if name and not _fixed(name, index)]
        if len(moving) != 1:
            return f"{Node(node).label} computes it from several tensors"
        nodes = (node, *nodes)
        if card_of(node.domain, node.op_type).contracts:
            return _Head(moving[0], nodes)
        tensor = moving[0]
    return "no layer with weights makes it"


def _fixed(name: str, index: GraphIndex) -> bool:
    """Whether a tensor is made of initializers only."""
    node = index.makers.get(name)
    return name in index.initializers if node is None else all(_fixed(n, index) for n in node.input if n)


class _Positions(Walk):
    """A walk along a path, with ids on the axis of positions."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(shapes.shapes)
        self.values: dict[str, Value] = {}
        self._constants = shapes.values

    def look(self, name: str) -> Value:
        return self.values[name] if name in self.values else super().look(name)

    def read(self, name: str) -> NDArray[Any] | None:
        return self._constants.get(name)


def _mixing(head: _Head, proto: ModelProto, shapes: Shapes) -> str | None:
    """Return why some position of an output depends on others of what the layer reads; None if none does.

    Positions get ids as channels do: they must arrive as they were, neither tied to each other nor pinned.
    """
    walk, shape = _Positions(shapes), shapes.shapes.get(head.start, ())
    if len(shape) <= _AXIS + 1 or shape[_AXIS] < 2:
        return "it has no axis of several positions, as in [batch, positions, words]"
    ids = walk.channels.fresh(shape[_AXIS])
    walk.values[head.start] = Value(shape, (Factor((_AXIS,), ids),))
    versions = opsets_of(proto)
    ledger = walk.channels
    for node in head.nodes:
        op = TraceNode(walk, 0, node, versions.get(node.domain or "ai.onnx", 1))
        trace = card_of(node.domain, node.op_type).trace
        try:
            if trace is not None:
                trace(op)
        except (ShapeUnknown, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            op.outputs.clear()
        factor = op.outputs[0].on(_AXIS) if 0 in op.outputs else None
        free = not (ledger.pins or ledger.left or ledger.approximations or ledger.rectangles)
        if not free or factor is None or factor.axes != (_AXIS,) or not np.array_equal(factor.ids, ids):
            return f"{op.label} mixes positions, or isn't known not to"
        walk.values |= {node.output[i]: value for i, value in op.outputs.items()}
    return None


def _sliced(proto: ModelProto, head: _Head, output: str) -> ModelProto:
    """Return the model with the last position cut out in front of a layer."""
    taken = names_in(proto.graph)
    last, bounds = unique(f"{head.start}_last", taken), {}
    for part, bound in (("starts", -1), ("ends", np.iinfo(np.int64).max), ("axes", _AXIS)):
        bounds[unique(f"{last}_{part}", taken)] = np.array([bound], dtype=np.int64)
    cut = helper.make_node("Slice", [head.start, *bounds], [last], name=unique(f"{last}/Slice", taken))

    def nodes() -> Iterator[NodeProto]:
        for node in proto.graph.node:
            if node.name == head.nodes[0].name:
                yield cut
                node = with_inputs(node, (last if name == head.start else name for name in node.input))
            yield node

    result = with_nodes(proto, nodes())
    result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in bounds.items())
    stale = {name for node in head.nodes for name in node.output}
    declared = [value for value in result.graph.value_info if value.name not in stale]
    del result.graph.value_info[:]
    result.graph.value_info.extend(declared)
    for value in result.graph.output:
        if value.name == output and len(value.type.tensor_type.shape.dim) > _AXIS:
            value.type.tensor_type.shape.dim[_AXIS].dim_value = 1
    return result
