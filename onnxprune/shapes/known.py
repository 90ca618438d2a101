"""What is known of a graph's tensors during the walk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, NamedTuple

from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from onnx.helper import make_tensor_type_proto
from onnx.numpy_helper import from_array, to_array

from onnxprune.model.checks import DEFAULT_DOMAINS, captured_names, subgraphs

Shape = tuple[int, ...]

SMALL = 4096  # values of more elements are weights or data, not shape arithmetic


@dataclass(slots=True)
class Known:
    """Types, shapes and values of tensors that are known so far.

    Attributes:
        types: The known types, with the part of the shape that is known.
        shapes: The shapes that are known in full.
        values: The known values.
        constant: The tensors that depend on no input, not even on an input's size.
    """

    types: dict[str, TypeProto] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    _tensors: dict[str, TensorProto] = field(default_factory=dict)  # the values as onnx takes them

    def copy(self) -> Known:
        """Return a copy that can learn more on its own."""
        return Known(*(getattr(self, part.name).copy() for part in fields(self)))

    def learn(self, name: str, kind: TypeProto) -> None:
        """Store a tensor's type. An empty name, of an output that is left out, is ignored."""
        if not name:
            return
        self.types[name] = kind
        if kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            shape = tuple([d.dim_value for d in dims if d.HasField("dim_value")])
            if len(shape) == len(dims) and min(shape, default=0) >= 0:  # onnx infers negative sizes, too
                self.shapes[name] = shape

    def forget(self, names: Iterable[str]) -> None:
        """Drop what is known of some tensors, except that some are constant."""
        for name in names:
            for part in (self.types, self.shapes, self.values, self._tensors):
                part.pop(name, None)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether the shapes of all these tensors are known."""
        return all(name in self.shapes for name in names)

    def tensor(self, name: str) -> TensorProto:
        """Return a known value as a TensorProto."""
        if name not in self._tensors:
            self._tensors[name] = from_array(self.values[name], name)
        return self._tensors[name]

    def learn_initializers(self, graph: GraphProto) -> None:
        """Store the types of a graph's initializers, and the values of small ones."""
        for tensor in graph.initializer:
            self.learn(tensor.name, make_tensor_type_proto(tensor.data_type, tensor.dims))
            self.constant.add(tensor.name)
            if (
                prod(tensor.dims) <= SMALL
                and tensor.data_type != TensorProto.STRING
                and tensor.data_location != TensorProto.EXTERNAL
            ):
                self.values[tensor.name] = to_array(tensor)
                self._tensors[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            self.learn(sparse.values.name, make_tensor_type_proto(sparse.values.data_type, sparse.dims))
            self.constant.add(sparse.values.name)


def is_tensor(kind: TypeProto) -> bool:
    """Whether a type is that of a tensor, or undefined."""
    return kind.WhichOneof("value") in ("tensor_type", None)


class NodeStep(NamedTuple):
    """A node, with what the walk needs of it at every pass."""

    node: NodeProto
    operator: str  # preceded by its domain, unless that is onnx's own
    reads: list[str]  # including what its bodies capture
    outputs: list[str]
    nested: bool  # whether it has bodies


def step_of(node: NodeProto) -> NodeStep:
    """Return what the walk needs of a node."""
    nested = any(True for _ in subgraphs(node))
    reads = [name for name in node.input if name]
    if nested:
        reads += sorted(captured_names(node).difference(reads))
    operator = f"{plain_domain(node.domain)}:{node.op_type}".lstrip(":")
    return NodeStep(node, operator, reads, [name for name in node.output if name], nested)


def plain_domain(name: str) -> str:
    """Return the usual name of an operator domain: onnx's own has two."""
    return "" if name in DEFAULT_DOMAINS else name


def model_of(
    proto: ModelProto, nodes: Iterable[NodeProto], inputs: Iterable[str], outputs: Iterable[str]
) -> ModelProto:
    """Return a model of some of another's nodes."""
    return ModelProto(
        ir_version=max(proto.ir_version, 8),  # from 4 on, initializers needn't be inputs
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=GraphProto(
            name="piece",
            node=nodes,
            input=[ValueInfoProto(name=name) for name in inputs],
            output=[ValueInfoProto(name=name) for name in outputs],
        ),
    )


def piece(proto: ModelProto, known: Known, steps: Sequence[NodeStep], outputs: Sequence[str]) -> ModelProto:
    """Return a model of some nodes. Known values that they read are its initializers, known types its inputs."""
    made = {name for step in steps for name in step.outputs}
    reads = dict.fromkeys(name for step in steps for name in step.reads if name not in made)
    fed = [name for name in reads if name not in known.values]
    model = model_of(proto, [step.node for step in steps], fed, outputs)
    for entry in model.graph.input:
        entry.type.CopyFrom(known.types.get(entry.name, TypeProto()))
    model.graph.initializer.extend(known.tensor(n) for n in reads if n in known.values)
    return model
