"""Operators that sum up an axis or read it as a whole."""

from __future__ import annotations

from onnxprune.channels.values import Factor
from onnxprune.operators.registry import rule
from onnxprune.operators.traced import TraceNode


@rule("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax")
@rule("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
def reduce(op: TraceNode) -> None:
    """Reduced axes go; removing channels there changes the result."""
    rank = len(op.shape(0))
    param = op.param(1, "axes")
    if param is None and op.has(1):
        op.give_up("OP205", "its axes are only known at run time")
        return
    if param is not None and param.size:
        axes = {int(a) % rank for a in param.ravel()}
    else:
        axes = set() if op.attr("noop_with_empty_axes", 0) else set(range(rank))
    op.approximate(op.x(0), sorted(axes), "it is taken over these channels")
    _fold(op, axes, keep=bool(op.attr("keepdims", 1)))


@rule("ArgMax", "ArgMin")
def arg_reduce(op: TraceNode) -> None:
    """A position is the result, so positions stay."""
    axis = op.axis(0)
    op.pin_axes(op.x(0), [axis], "OP204", "its result is a position on this axis")
    _fold(op, {axis}, keep=bool(op.attr("keepdims", 1)))


def _fold(op: TraceNode, axes: set[int], *, keep: bool) -> None:
    """Give the output the ids that stand on the axes that aren't reduced."""
    names = [f"a{chr(97 + i)}" for i in range(len(op.shape(0)))]
    after = ["z" + n if i in axes else n for i, n in enumerate(names) if keep or i not in axes]
    value = op.x(0)
    reduced = [f for f in value.factors if set(f.axes) <= axes]
    rest: list[Factor] = [f for f in value.factors if f not in reduced]
    op.align(f"{' '.join(names)} -> {' '.join(after)}", [value.moved(value.shape, rest)])


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: TraceNode) -> None:
    """Every position of the axis counts. Before opset 13 the axes from `axis` on were one."""
    rank = len(op.shape(0))
    axis = op.axis(-1 if op.version >= 13 else 1)
    axes = [axis] if op.version >= 13 else range(axis, rank)
    op.give(op.pin_axes(op.x(0), list(axes), "OP204", "it normalizes over this axis, so each position counts"))


@rule("CumSum", "CumProd")
def cumulate(op: TraceNode) -> None:
    """Sums run along the axis."""
    axis = op.const(1)
    axes = range(len(op.shape(0))) if axis is None else [int(axis) % len(op.shape(0))]
    op.give(op.pin_axes(op.x(0), list(axes), "OP204", "it accumulates along this axis"))


@rule("TopK")
def top_k(op: TraceNode) -> None:
    """Positions are sorted."""
    value = op.pin_axes(op.x(0), [op.axis(-1)], "OP204", "it sorts the positions of this axis")
    for i in range(len(op.node.output)):
        op.give(value.moved(op.out_shape(i), value.factors), i)
