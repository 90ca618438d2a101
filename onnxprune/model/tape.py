"""Build a graph from formulas over tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

Shape: TypeAlias = tuple[int, ...]
Operand: TypeAlias = "Tensor | float | NDArray[Any]"

FLOAT, INT64, BOOL = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.BOOL)
REAL = {FLOAT, *map(int, (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))}
"""The types of real numbers."""


def _operator(op_type: str) -> Callable[[Tensor, Operand], Tensor]:
    """Return a method that applies a binary operator, with broadcasting."""

    def apply(self: Tensor, other: Operand) -> Tensor:
        return self.op(op_type, other)

    return apply


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of a graph under construction; operators append nodes.

    Attributes:
        tape: the graph.
        name: its name there.
        shape: its size along every axis.
        dtype: its element type (`TensorProto.DataType`).
    """

    tape: Tape
    name: str
    shape: Shape
    dtype: int

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    __add__ = __radd__ = _operator("Add")
    __sub__ = _operator("Sub")
    __mul__ = __rmul__ = _operator("Mul")
    __truediv__ = _operator("Div")
    __pow__ = _operator("Pow")
    __matmul__ = _operator("MatMul")
    __gt__ = _operator("Greater")
    __lt__ = _operator("Less")
    __ge__ = _operator("GreaterOrEqual")
    __le__ = _operator("LessOrEqual")
    __and__ = _operator("And")

    def __rsub__(self, other: Operand) -> Tensor:
        """Subtract this tensor from another operand."""
        return self.like(other).op("Sub", self)

    def __rtruediv__(self, other: Operand) -> Tensor:
        """Divide another operand by this tensor."""
        return self.like(other).op("Div", self)

    def __neg__(self) -> Tensor:
        """Negate."""
        return self.op("Neg")

    def equals(self, other: Operand) -> Tensor:
        """Return whether elements are equal."""
        return self.op("Equal", other)

    def op(self, op_type: str, *others: Operand, **attributes: Any) -> Tensor:
        """Apply an operator with one output; numbers become constants of this tensor's type."""
        return self.tape.emit(op_type, self, *(self.like(o) for o in others), **attributes)

    def like(self, other: Operand) -> Tensor:
        """Return an operand as a tensor; numbers become a constant of this tensor's type."""
        if isinstance(other, Tensor):
            return other
        return self.tape.constant(np.asarray(other, helper.tensor_dtype_to_np_dtype(self.dtype)))

    def cast(self, dtype: int) -> Tensor:
        """Convert to another element type."""
        return self if dtype == self.dtype else self.op("Cast", to=dtype)

    def where(self, yes: Operand, no: Operand) -> Tensor:
        """Select elements by this tensor of booleans; one of the two operands must be a tensor."""
        model = next(t for t in (yes, no) if isinstance(t, Tensor))
        return self.tape.emit("Where", self, model.like(yes), model.like(no))

    def sum(self, axes: Sequence[int] | None = None, *, keep: bool = True) -> Tensor:
        """Sum over axes, all by default."""
        return self.reduce("ReduceSum", axes, keep=keep)

    def mean(self, axes: Sequence[int] | None = None, *, keep: bool = True) -> Tensor:
        """Take the mean over axes, all by default."""
        return self.reduce("ReduceMean", axes, keep=keep)

    def reduce(self, op_type: str, axes: Sequence[int] | None = None, *, keep: bool = True) -> Tensor:
        """Apply a reducing operator over axes, all by default."""
        axes = sorted(range(self.rank) if axes is None else [a % self.rank for a in axes])
        if op_type in ("ReduceSum", "ReduceMean") and all(self.shape[a] == 1 for a in axes):
            kept = tuple(n for a, n in enumerate(self.shape) if keep or a not in axes)
            return self.reshape(kept)
        return self.tape.emit(op_type, self, self.tape.ints(axes), keepdims=int(keep))

    def sum_to(self, shape: Shape) -> Tensor:
        """Sum over the axes along which a tensor of a shape would be broadcast to this one's."""
        if self.shape == shape:
            return self
        extra = self.rank - len(shape)
        padded = (1,) * extra + shape
        axes = [a for a, (m, n) in enumerate(zip(self.shape, padded, strict=True)) if m != n]
        assert all(padded[a] == 1 for a in axes), f"{self.shape} isn't broadcast from {shape}"
        return self.sum(axes).reshape(shape) if axes else self.reshape(shape)

    def reshape(self, shape: Sequence[int]) -> Tensor:
        """Reshape; -1 stands for the remaining size."""
        shape = tuple(shape)
        if -1 in shape:
            rest = self.size // -prod(shape)
            shape = tuple(rest if n == -1 else n for n in shape)
        if shape == self.shape:
            return self
        return self.tape.emit("Reshape", self, self.tape.ints(shape))

    def transpose(self, order: Sequence[int]) -> Tensor:
        """Permute the axes."""
        order = [a % self.rank for a in order]
        moving = [a for a in order if self.shape[a] != 1]
        if order == list(range(self.rank)):
            return self
        if moving == sorted(moving):  # only single axes move
            return self.reshape([self.shape[a] for a in order])
        return self.op("Transpose", perm=order)

    @property
    def mT(self) -> Tensor:
        """The matrices transposed."""
        return self.transpose([*range(self.rank - 2), self.rank - 1, self.rank - 2])

    def expand(self, shape: Sequence[int]) -> Tensor:
        """Broadcast to a shape."""
        if tuple(shape) == self.shape:
            return self
        return self.tape.emit("Expand", self, self.tape.ints(shape))

    def slice(
        self, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int] | None = None
    ) -> Tensor:
        """Cut pieces out of axes."""
        whole = all(
            start == 0 and end >= self.shape[axis] and step == 1
            for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True)
        )
        if whole:
            return self
        parts = [starts, ends, axes, steps or [1] * len(axes)]
        return self.tape.emit("Slice", self, *(self.tape.ints(p) for p in parts))

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Tensor:
        """Pad every axis with zeros."""
        if not any(before) and not any(after):
            return self
        return self.tape.emit("Pad", self, self.tape.ints([*before, *after]))

    def zeros(self) -> Tensor:
        """Return zeros of the same shape and type."""
        return self.like(np.zeros((1,) * self.rank)).expand(self.shape)

    def scatter_add(self, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
        """Add updates at indices along an axis."""
        return self.tape.emit("ScatterElements", self, indices, updates, axis=axis, reduction="add")


class Tape:
    """A graph under construction.

    Attributes:
        nodes: the nodes so far, in topological order.
        constants: values of its constants, by name.
        inputs: its inputs, in order.
        stopped: names of tensors that stop gradients.
        opset: the version of ONNX's operators in it.
    """

    def __init__(self, opset: int, ir_version: int = 10) -> None:
        """Start with an empty graph."""
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[Tensor] = []
        self.stopped: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        self._made: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._opsets = [helper.make_opsetid("", opset)]
        self._ir_version = ir_version
        self._count = 0

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of a name."""
        return name in self._tensors

    def know(self, name: str, shape: Sequence[int], dtype: int) -> Tensor:
        """Register a tensor that is defined elsewhere."""
        self._tensors[name] = tensor = Tensor(self, name, tuple(shape), dtype)
        return tensor

    def input(self, name: str, shape: Sequence[int], dtype: int = FLOAT) -> Tensor:
        """Add an input."""
        tensor = self.know(self.unique(name), shape, dtype)
        self.inputs.append(tensor)
        return tensor

    def constant(self, value: NDArray[Any], name: str | None = None) -> Tensor:
        """Add a constant; unnamed constants of equal value are shared."""
        key = ("", value.shape, value.dtype.str, value.tobytes()) if name is None else (name,)
        if key not in self._made:
            name = self.unique("constant") if name is None else name
            self.constants[name] = value
            self._made[key] = (self.know(name, value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)),)
        return self._made[key][0]

    def ints(self, values: Sequence[int]) -> Tensor:
        """Add a constant vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def stop_gradient(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that stops gradients."""
        copy = self.emit("Identity", tensor)
        self.stopped.add(copy.name)
        return copy

    def emit(self, op_type: str, *inputs: Tensor | None, **attributes: Any) -> Tensor:
        """Append a node with one output."""
        return self.emits(op_type, *inputs, count=1, **attributes)[0]

    def emits(self, op_type: str, *inputs: Tensor | None, count: int, **attributes: Any) -> tuple[Tensor, ...]:
        """Append a node with several outputs, or reuse an equal one."""
        names = tuple("" if t is None else t.name for t in inputs)
        key = (op_type, names, repr(sorted(attributes.items())), count)
        if key not in self._made:
            self._count += 1
            outputs = [f"{op_type}_{self._count}" + (f".{i}" if i else "") for i in range(count)]
            outputs = [self.unique(name) for name in outputs]
            # Not the output's name alone: exporters name nodes Reshape_374, too, and a graph may hold copies of these.
            node = helper.make_node(op_type, names, outputs, name=f"tape/{outputs[0]}", **attributes)
            found = self._infer(node)
            self.nodes.append(node)
            self._made[key] = tuple(self.know(o, *found[o]) for o in outputs)
        return self._made[key]

    def unique(self, name: str) -> str:
        """Return a name that isn't taken."""
        candidate = name
        while candidate in self._tensors:
            self._count += 1
            candidate = f"{name}_{self._count}"
        return candidate

    def _infer(self, node: NodeProto) -> dict[str, tuple[Shape, int]]:
        types: dict[str, TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name in filter(None, node.input):
            tensor = self._tensors[name]
            types[name] = helper.make_tensor_type_proto(tensor.dtype, tensor.shape)
            if name in self.constants and tensor.dtype == INT64:
                data[name] = numpy_helper.from_array(self.constants[name], name)
        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        opsets, version = self._opsets, self._ir_version
        found = infer_node_outputs(schema, node, types, data, opset_imports=opsets, ir_version=version)
        return {name: _shape_and_type(node, name, kind) for name, kind in found.items()}


def _shape_and_type(node: NodeProto, name: str, kind: TypeProto) -> tuple[Shape, int]:
    dims = kind.tensor_type.shape.dim
    assert kind.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims), (
        f"the shape of {node.op_type}'s output {name} isn't known"
    )
    return tuple(d.dim_value for d in dims), kind.tensor_type.elem_type
