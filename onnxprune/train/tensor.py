"""Tensors of a graph under construction, which are written as formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from onnxprune.train.tape import Tape

Shape: TypeAlias = tuple[int, ...]
Operand: TypeAlias = "Tensor | float | NDArray[Any]"

FLOAT, INT64, BOOL = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.BOOL)


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

    def __add__(self, other: Operand) -> Tensor:
        """Add, with broadcasting."""
        return self.op("Add", other)

    def __radd__(self, other: Operand) -> Tensor:
        """Add, with broadcasting."""
        return self.op("Add", other)

    def __sub__(self, other: Operand) -> Tensor:
        """Subtract, with broadcasting."""
        return self.op("Sub", other)

    def __rsub__(self, other: Operand) -> Tensor:
        """Subtract from something, with broadcasting."""
        return self.like(other).op("Sub", self)

    def __mul__(self, other: Operand) -> Tensor:
        """Multiply, with broadcasting."""
        return self.op("Mul", other)

    def __rmul__(self, other: Operand) -> Tensor:
        """Multiply, with broadcasting."""
        return self.op("Mul", other)

    def __truediv__(self, other: Operand) -> Tensor:
        """Divide, with broadcasting."""
        return self.op("Div", other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        """Divide something by it, with broadcasting."""
        return self.like(other).op("Div", self)

    def __pow__(self, other: Operand) -> Tensor:
        """Raise to a power."""
        return self.op("Pow", other)

    def __neg__(self) -> Tensor:
        """Negate."""
        return self.op("Neg")

    def __matmul__(self, other: Tensor) -> Tensor:
        """Multiply as (stacks of) matrices."""
        return self.op("MatMul", other)

    def __gt__(self, other: Tensor | float) -> Tensor:
        """Compare."""
        return self.op("Greater", other)

    def __lt__(self, other: Tensor | float) -> Tensor:
        """Compare."""
        return self.op("Less", other)

    def __ge__(self, other: Tensor | float) -> Tensor:
        """Compare."""
        return self.op("GreaterOrEqual", other)

    def __le__(self, other: Tensor | float) -> Tensor:
        """Compare."""
        return self.op("LessOrEqual", other)

    def __and__(self, other: Tensor) -> Tensor:
        """Tell where both hold."""
        return self.op("And", other)

    def equals(self, other: Operand) -> Tensor:
        """Tell where elements are equal."""
        return self.op("Equal", other)

    def op(self, op_type: str, *others: Operand, **attributes: Any) -> Tensor:
        """Apply an operator with one output; numbers become constants of this tensor's type."""
        return self.tape.emit(op_type, self, *(self.like(o) for o in others), **attributes)

    def like(self, other: Operand) -> Tensor:
        """Return something as a tensor; numbers become a constant of this tensor's type."""
        if isinstance(other, Tensor):
            return other
        return self.tape.constant(np.asarray(other, helper.tensor_dtype_to_np_dtype(self.dtype)))

    def cast(self, dtype: int) -> Tensor:
        """Convert to another element type."""
        return self if dtype == self.dtype else self.op("Cast", to=dtype)

    def where(self, yes: Operand, no: Operand) -> Tensor:
        """Choose by this tensor of booleans; one of the two must be a tensor."""
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
        """Give it another shape of the same size; -1 stands for what remains."""
        shape = tuple(shape)
        if -1 in shape:
            rest = self.size // -prod(shape)
            shape = tuple(rest if n == -1 else n for n in shape)
        if shape == self.shape:
            return self
        return self.tape.emit("Reshape", self, self.tape.ints(shape))

    def transpose(self, order: Sequence[int]) -> Tensor:
        """Put the axes into another order."""
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
