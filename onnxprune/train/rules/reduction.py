"""Operators that reduce or normalize over axes."""

from __future__ import annotations

from math import prod

from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import flat, gradient


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


@gradient("Softmax")
def softmax(op: GradientNode, dy: Tensor) -> Tensor:
    """Of the shares y: y (dy - sum(y dy))."""
    axis = [op.axis(-1)]
    weighted = dy * op.y()
    return weighted - op.y() * weighted.sum(axis)


@gradient("LogSoftmax")
def log_softmax(op: GradientNode, dy: Tensor) -> Tensor:
    """Of y = log softmax(x): dy - e^y sum(dy)."""
    return dy - op.y().op("Exp") * dy.sum([op.axis(-1)])


@gradient("TopK")
def top_k(op: GradientNode, dy: Tensor) -> Tensor:
    """Put the values back where they were found."""
    return op.x().zeros().scatter_add(op.y(1), dy, op.axis(-1))


@gradient("LpNormalization")
def lp_normalization(op: GradientNode, dy: Tensor) -> Tensor:
    """Of x / norm: (dy - dnorm sum(y dy)) / norm, where dnorm is the norm's own derivative."""
    axis, x = [op.axis(-1)], op.x()
    inner = (dy * op.y()).sum(axis)
    if op.attr("p", 2) == 1:
        return (dy - x.op("Sign") * inner) / x.reduce("ReduceL1", axis)
    return (dy - op.y() * inner) / x.reduce("ReduceL2", axis)


flat("ArgMax", "ArgMin", "Hardmax")
