"""Operators that sum up an axis or read it as a whole."""

from __future__ import annotations

from math import prod

from onnxprune.model.tape import Tensor
from onnxprune.operators.card import INTEGER, describe, flat, gradient, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.traced import TraceNode

_NORMALIZES = "it normalizes over this axis, so each position counts"

flat("ArgMax ArgMin Hardmax")
describe("TopK", sizing=(1,))
describe("ReduceMean", alike="mean")
describe("ReduceSum", alike="data")
without("gradient", "no gradient rule is written", "CumProd")
without("gradient", INTEGER, "com.microsoft:QLinearSoftmax")


@traces("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum")
@traces("ReduceSumSquare")
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
    _fold(op, axes)


@traces("ArgMax ArgMin")
def arg_reduce(op: TraceNode) -> None:
    """The result is a position, so positions stay."""
    axis = op.axis(0)
    op.pin_axes(op.x(0), [axis], "OP204", "its result is a position on this axis")
    _fold(op, {axis})


def _fold(op: TraceNode, axes: set[int]) -> None:
    """Give the output the ids on the axes that aren't reduced."""
    keep, names, value = op.attr("keepdims", 1), op.names(), op.x(0)
    after = ["z" + n if i in axes else n for i, n in enumerate(names) if keep or i not in axes]
    rest = [f for f in value.factors if not set(f.axes) <= axes]
    op.align(f"{' '.join(names)} -> {' '.join(after)}", [value.moved(value.shape, rest)])


def _kept(op: GradientNode, of: Tensor) -> Tensor:
    """Return an output (or its gradient) with the reduced axes kept as axes of size one."""
    axes = op.axes(1)
    return of.reshape([1 if a in axes else n for a, n in enumerate(op.x().shape)])


gradient("ReduceL1")(lambda op, dy: op.x().op("Sign") * _kept(op, dy))
gradient("ReduceLogSum")(lambda op, dy: (_kept(op, dy) / _kept(op, op.y()).op("Exp")).expand(op.x().shape))
gradient("ReduceLogSumExp")(lambda op, dy: _kept(op, dy) * (op.x() - _kept(op, op.y())).op("Exp"))
gradient("ReduceProd")(lambda op, dy: _kept(op, dy) * _kept(op, op.y()) / op.x())
gradient("ReduceSum")(lambda op, dy: _kept(op, dy).expand(op.x().shape))
gradient("ReduceSumSquare")(lambda op, dy: op.x() * (_kept(op, dy) * 2.0))


@gradient("ReduceMean")
def reduce_mean(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread dy in equal shares."""
    count = prod(op.x().shape[a] for a in op.axes(1))
    return (_kept(op, dy) * (1 / count)).expand(op.x().shape)


@gradient("ReduceMax ReduceMin")
def reduce_extreme(op: GradientNode, dy: Tensor) -> Tensor:
    """Divide dy among the elements that are the largest (or the smallest)."""
    chosen = op.x().equals(_kept(op, op.y())).cast(dy.dtype)
    return chosen * (_kept(op, dy) / chosen.sum(op.axes(1)))


@gradient("ReduceL2")
def reduce_l2(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of the norm: x / norm, zero where the norm is zero."""
    norm = _kept(op, op.y())
    return op.x() * (norm > 0).where(_kept(op, dy) / norm, 0.0)


@traces("Softmax LogSoftmax Hardmax com.microsoft:QLinearSoftmax")
def softmax(op: TraceNode) -> None:
    """Every position of the axis counts. Before opset 13 the axes from `axis` on were one."""
    single = op.version >= 13 or op.node.op_type == "QLinearSoftmax"
    axis = op.axis(-1 if single else 1)
    axes = [axis] if single else list(range(axis, len(op.shape(0))))
    op.give(op.pin_axes(op.x(0), axes, "OP204", _NORMALIZES))


@gradient("Softmax")
def softmax_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of y = softmax(x): y (dy - sum(y dy))."""
    weighted = dy * op.y()
    return weighted - op.y() * weighted.sum([op.axis(-1)])


@gradient("LogSoftmax")
def log_softmax(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of y = log softmax(x): dy - e^y sum(dy)."""
    return dy - op.y().op("Exp") * dy.sum([op.axis(-1)])


@traces("CumSum CumProd")
def cumulate(op: TraceNode) -> None:
    """Sums run along the axis."""
    axis, rank = op.const(1), len(op.shape(0))
    axes = list(range(rank)) if axis is None else [int(axis) % rank]
    op.give(op.pin_axes(op.x(0), axes, "OP204", "it accumulates along this axis"))


@gradient("CumSum")
def cumsum(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum dy from the other end."""
    return dy.op("CumSum", op.x(1), exclusive=op.attr("exclusive", 0), reverse=1 - op.attr("reverse", 0))


@traces("TopK")
def top_k(op: TraceNode) -> None:
    """Positions are sorted."""
    value = op.pin_axes(op.x(0), [op.axis(-1)], "OP204", "it sorts the positions of this axis")
    for i in range(len(op.node.output)):
        op.give(value.moved(op.out_shape(i), value.factors), i)


@gradient("TopK")
def top_k_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each value to the position it was found at."""
    return op.x().zeros().scatter_add(op.y(1), dy, op.axis(-1))
