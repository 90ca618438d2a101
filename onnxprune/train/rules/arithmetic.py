"""Operators of several tensors that act element by element, with broadcasting."""

from __future__ import annotations

from functools import reduce

from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import gradient


@gradient("Add", "Sum", of=None)
@gradient("Sub", of=0)
def add(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass."""
    return dy


@gradient("Sub", of=1)
def subtrahend(op: GradientNode, dy: Tensor) -> Tensor:
    """Negate."""
    return -dy.sum_to(op.x(1).shape)


@gradient("Mul", of=None)
def mul(op: GradientNode, dy: Tensor) -> Tensor:
    """Multiply by the other factor."""
    return dy * op.x(1 - op.index)


@gradient("Div", of=0)
def numerator(op: GradientNode, dy: Tensor) -> Tensor:
    """Divide by the denominator."""
    return dy / op.x(1)


@gradient("Div", of=1)
def denominator(op: GradientNode, dy: Tensor) -> Tensor:
    """Of x / z by z: -y / z."""
    return -(dy * op.y()).sum_to(op.x(1).shape) / op.x(1)


@gradient("Pow", of=0)
def base(op: GradientNode, dy: Tensor) -> Tensor:
    """Of x^p by x: p x^(p-1)."""
    p = op.x(1).cast(op.x().dtype)
    return dy * p * op.x() ** (p - 1)


@gradient("Pow", of=1)
def exponent(op: GradientNode, dy: Tensor) -> Tensor:
    """Of x^p by p: y log x."""
    return dy * op.y() * op.x().op("Log")


@gradient("Max", "Min", of=None)
def extreme(op: GradientNode, dy: Tensor) -> Tensor:
    """Share among the operands that are the largest (or the smallest)."""
    chosen = [op.y().equals(x).cast(dy.dtype) for x in op.inputs]
    return dy * chosen[op.index] / reduce(Tensor.__add__, chosen)


@gradient("Mean", of=None)
def mean(op: GradientNode, dy: Tensor) -> Tensor:
    """Share among all operands."""
    return dy * (1 / len(op.inputs))


@gradient("Where", of=1)
def where_true(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass where the condition holds."""
    return op.x(0).where(dy, 0.0)


@gradient("Where", of=2)
def where_false(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass where the condition doesn't hold."""
    return op.x(0).where(dy.zeros(), dy)


@gradient("PRelu", of=0)
def prelu(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass above zero, multiply by the slope below."""
    return (op.x() > 0).where(dy, dy * op.x(1))


@gradient("PRelu", of=1)
def prelu_slope(op: GradientNode, dy: Tensor) -> Tensor:
    """Multiply by the input where that is below zero."""
    return dy * op.x().op("Min", 0.0)


@gradient("Mod", of=0)
def remainder(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass: it moves with the dividend."""
    return dy
