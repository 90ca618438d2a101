"""Operators that only move data: the id arrays are moved in the same way."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.values import Factor, transpose
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import TWIN, describe, flat, gradient, leave, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

flat("ConstantOfShape EyeLike NonZero OneHot RandomNormal RandomUniform Range Shape Size com.microsoft:Range")
flat("Bernoulli Multinomial RandomNormalLike RandomUniformLike")  # of their input they take the shape, or chances
leave("its values are drawn for each position", "Bernoulli Multinomial RandomNormalLike RandomUniformLike")
leave("its result is a matrix of positions", "EyeLike")
without("gradient", TWIN, "com.microsoft:ExpandDims")
describe("ConstantOfShape", sizing=(0,))
describe("Expand Flatten Reshape Squeeze Transpose Unsqueeze", alike="mean")
describe("Expand OneHot Reshape Tile", sizing=(1,))
describe("Range com.microsoft:Range", sizing=(0, 1, 2))


@traces("Reshape Flatten Squeeze Unsqueeze com.microsoft:ExpandDims")
def reshape(op: TraceNode) -> None:
    """Ids are reshaped."""
    op.give(op.reshape(op.x(0), op.out_shape()))


@rewrites("Reshape")
def reshape_target(edit: RewriteNode) -> None:
    """Entries 0 (copy the input's size) and -1 (infer) stay where they still give the right size."""
    target = edit.param(1, "shape")
    if target is None:
        return
    new = np.array(edit.new_out_shape(0), dtype=np.int64)
    copied = (target == 0) & (not edit.attr("allowzero", 0))
    for i in np.flatnonzero(copied):
        if edit.new_shape(0)[i] != new[i]:
            copied[i] = False
    edit.set_param(1, "shape", np.where(copied | (target == -1), target, new), is_shape=True)


@rewrites("Squeeze")
def squeeze_axes(edit: RewriteNode) -> None:
    """The axes of size one are named explicitly: pruning may give another axis this size."""
    if edit.param(1, "axes") is None:
        axes = [a for a, n in enumerate(edit.shape(0)) if n == 1]
        edit.set_param(1, "axes", np.array(axes, dtype=np.int64), since=13)


gradient("Reshape Flatten Squeeze Unsqueeze")(lambda op, dy: dy.reshape(op.x().shape))


@traces("Transpose")
def transposed(op: TraceNode) -> None:
    """Ids are transposed."""
    op.give(transpose(op.x(0), op.attr("perm") or range(len(op.shape(0)))[::-1]))


@gradient("Transpose")
def transpose_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Apply the inverse permutation."""
    order = op.attr("perm") or range(op.x().rank)[::-1]
    return dy.transpose(np.argsort(order).tolist())


@traces("Expand")
def expand(op: TraceNode) -> None:
    """Axes keep their ids; broadcast axes hold new channels, as those of a weight do."""
    op.align("*a -> *a", [op.x(0)])
    out, before = op.outputs[0], op.shape(0)
    before = (1,) * (len(out.shape) - len(before)) + before
    spread = [a for a, (m, n) in enumerate(zip(before, out.shape, strict=True)) if n > m]
    op.give(out.moved(out.shape, [*out.factors, *(Factor((a,), op.channels.fresh(out.shape[a])) for a in spread)]))


@rewrites("Expand")
def expand_target(edit: RewriteNode) -> None:
    """The sizes that remain; 1 still broadcasts."""
    target = edit.param(1, "shape")
    if target is not None:
        new = np.array(edit.new_out_shape(0), dtype=np.int64)[-len(target) :]
        edit.set_param(1, "shape", np.where(target == 1, target, new), is_shape=True)


gradient("Expand")(lambda op, dy: dy)


@traces("Shape")
def shape_of(op: TraceNode) -> None:
    """The sizes of a tensor, as positions: reading them doesn't keep channels from being removed."""
    op.give(op.positions())


@rewrites("Shape")
def shape_as_it_was(edit: RewriteNode) -> None:
    """Arithmetic on sizes still sees the original ones, so that whatever is derived from them keeps its value.

    An attention's 1/sqrt(d) must not change with d; a Reshape's target is adapted where it is used.
    """
    old, new = np.array(edit.shape(0), dtype=np.int64), np.array(edit.new_shape(0), dtype=np.int64)
    part = slice(edit.attr("start", 0), edit.attr("end"))
    if (old[part] != new[part]).any():
        edit.scale_output(new[part], old[part])


@traces("ConstantOfShape")
def constant_of_shape(op: TraceNode) -> None:
    """Channels as those of a weight."""
    op.give(op.constant())


@rewrites("ConstantOfShape")
def constant_of_shape_target(edit: RewriteNode) -> None:
    """The shape that remains."""
    if edit.param(0, "") is not None:
        edit.set_param(0, "", np.array(edit.new_out_shape(0), dtype=np.int64), is_shape=True)


@traces("Size")
def size_of(op: TraceNode) -> None:
    """The number of elements, which must not change."""
    op.give_up("OP209", "its number of elements is read")


@traces("OneHot")
def one_hot(op: TraceNode) -> None:
    """A new axis of positions; the others are those of the indices."""
    names = op.names()
    axis = op.axis(-1, rank=len(names) + 1)
    op.align(f"{' '.join(names)} -> {' '.join([*names[:axis], 'z', *names[axis:]])}", [op.x(0)])


@traces("Range RandomNormal RandomUniform com.microsoft:Range")
def positions(op: TraceNode) -> None:
    """Made from parameters: their axes hold positions."""
    op.give(op.positions())
