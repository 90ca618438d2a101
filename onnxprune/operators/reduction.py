"""Operators that sum up an axis or read it as a whole."""

from __future__ import annotations

from math import prod

from onnxprune.channels.values import Factor
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import flat, gradient, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.traced import TraceNode


@traces("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax")
@traces("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
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


def _kept(op: GradientNode, of: Tensor) -> Tensor:
    """Return an output (or its gradient) with the reduced axes as single ones."""
    axes = op.axes(1)
    return of.reshape([1 if a in axes else n for a, n in enumerate(op.x().shape)])


def _count(op: GradientNode) -> int:
    return prod(op.x().shape[a] for a in op.axes(1))


@gradient("ReduceSum")
def reduce_sum(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread."""
    return _kept(op, dy).expand(op.x().shape)


@gradient("ReduceMean")
def reduce_mean(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread in equal shares."""
    return (_kept(op, dy) * (1 / _count(op))).expand(op.x().shape)


@gradient("ReduceMax", "ReduceMin")
def reduce_extreme(op: GradientNode, dy: Tensor) -> Tensor:
    """Share among the elements that are the largest (or the smallest)."""
    chosen = op.x().equals(_kept(op, op.y())).cast(dy.dtype)
    return chosen * (_kept(op, dy) / chosen.sum(op.axes(1)))


@gradient("ReduceL1")
def reduce_l1(op: GradientNode, dy: Tensor) -> Tensor:
    """The sign."""
    return op.x().op("Sign") * _kept(op, dy)


@gradient("ReduceL2")
def reduce_l2(op: GradientNode, dy: Tensor) -> Tensor:
    """Of the norm: x / norm, zero where that is zero."""
    norm = _kept(op, op.y())
    return op.x() * (norm > 0).where(_kept(op, dy) / norm, 0.0)


@gradient("ReduceSumSquare")
def reduce_sum_square(op: GradientNode, dy: Tensor) -> Tensor:
    """Twice the element."""
    return op.x() * (_kept(op, dy) * 2.0)


@gradient("ReduceLogSum")
def reduce_log_sum(op: GradientNode, dy: Tensor) -> Tensor:
    """One over the sum."""
    return (_kept(op, dy) / _kept(op, op.y()).op("Exp")).expand(op.x().shape)


@gradient("ReduceLogSumExp")
def reduce_log_sum_exp(op: GradientNode, dy: Tensor) -> Tensor:
    """The element's share in the sum of exponentials."""
    return _kept(op, dy) * (op.x() - _kept(op, op.y())).op("Exp")


@gradient("ReduceProd")
def reduce_prod(op: GradientNode, dy: Tensor) -> Tensor:
    """The product over the element, which must not be zero."""
    return _kept(op, dy) * _kept(op, op.y()) / op.x()


@traces("ArgMax", "ArgMin")
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


@traces("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: TraceNode) -> None:
    """Every position of the axis counts. Before opset 13 the axes from `axis` on were one."""
    rank = len(op.shape(0))
    axis = op.axis(-1 if op.version >= 13 else 1)
    axes = [axis] if op.version >= 13 else range(axis, rank)
    op.give(op.pin_axes(op.x(0), list(axes), "OP204", "it normalizes over this axis, so each position counts"))


@gradient("Softmax")
def softmax_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Of the shares y: y (dy - sum(y dy))."""
    axis = [op.axis(-1)]
    weighted = dy * op.y()
    return weighted - op.y() * weighted.sum(axis)


@gradient("LogSoftmax")
def log_softmax(op: GradientNode, dy: Tensor) -> Tensor:
    """Of y = log softmax_gradient(x): dy - e^y sum(dy)."""
    return dy - op.y().op("Exp") * dy.sum([op.axis(-1)])


@traces("CumSum", "CumProd")
def cumulate(op: TraceNode) -> None:
    """Sums run along the axis."""
    axis = op.const(1)
    axes = range(len(op.shape(0))) if axis is None else [int(axis) % len(op.shape(0))]
    op.give(op.pin_axes(op.x(0), list(axes), "OP204", "it accumulates along this axis"))


@gradient("CumSum")
def cumsum(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum up from the other end."""
    return dy.op("CumSum", op.x(1), exclusive=op.attr("exclusive", 0), reverse=1 - op.attr("reverse", 0))


@traces("TopK")
def top_k(op: TraceNode) -> None:
    """Positions are sorted."""
    value = op.pin_axes(op.x(0), [op.axis(-1)], "OP204", "it sorts the positions of this axis")
    for i in range(len(op.node.output)):
        op.give(value.moved(op.out_shape(i), value.factors), i)


@gradient("TopK")
def top_k_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Put the values back where they were found."""
    return op.x().zeros().scatter_add(op.y(1), dy, op.axis(-1))


flat("ArgMax", "ArgMin", "Hardmax")


without("gradient", "no gradient rule is written", "CumProd")
