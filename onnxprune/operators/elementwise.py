"""Operators that act on each element by itself: axes meet under broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from math import pi, sqrt

import numpy as np

from onnxprune.model.tape import BOOL, Tensor
from onnxprune.operators.card import EARLY, FUSED, INTEGER, describe, flat, gradient, operator_key, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.traced import TraceNode

flat("""
    And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Equal Floor Greater GreaterOrEqual IsInf IsNaN Less
    LessOrEqual Not Or Round Sign Xor
""")
without("gradient", "it reads the bits of a number", "BitCast")
without("gradient", EARLY, "Affine ParametricSoftplus ScaledTanh")
without("gradient", INTEGER, "com.microsoft:QLinearAdd com.microsoft:QLinearLeakyRelu com.microsoft:QLinearMul")
without("gradient", INTEGER, "com.microsoft:QLinearSigmoid com.microsoft:QLinearWhere")
without("gradient", FUSED, "com.microsoft:BiasAdd com.microsoft:BiasDropout com.microsoft:BiasSplitGelu")
without("gradient", FUSED, "com.microsoft:ScaledSiLU com.microsoft:SwiGLU")


@traces("""
    Abs Acos Acosh Affine Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not ParametricSoftplus Reciprocal Relu Round
    ScaledTanh Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    com.microsoft:BiasGelu com.microsoft:FastGelu com.microsoft:Gelu com.microsoft:QuickGelu
""")
def unary(op: TraceNode) -> None:
    """Each element by itself; the contrib spellings of Gelu take a bias."""
    if len(op.inputs) > 1:
        op.align("*a, *a -> *a")
    else:
        op.give(op.x(0))


@traces("CastLike Clip Dropout com.microsoft:QLinearLeakyRelu com.microsoft:QLinearSigmoid com.microsoft:ScaledSiLU")
def unary_with_parameters(op: TraceNode) -> None:
    """Each element by itself; further inputs are parameters, further outputs masks."""
    for i in range(len(op.node.output)):
        op.give(op.x(0), i)


Derivative = Callable[[GradientNode, Tensor, Tensor], Tensor]


_SELU = 1.67326319217681884765625, 1.05070102214813232421875  # alpha and gamma as ONNX defines them


def _sigmoid(x: Tensor) -> Tensor:
    return x.op("Sigmoid")


def _normal_density(x: Tensor) -> Tensor:
    return (x * x * -0.5).op("Exp") * (1 / sqrt(2 * pi))


def _elu(x: Tensor, y: Tensor, alpha: float, slope: float = 1.0) -> Tensor:
    """Return the slope above zero, and y + alpha below, where y is alpha (e^x - 1)."""
    return (x > 0).where(slope, y + alpha)


def _celu(op: GradientNode, x: Tensor, y: Tensor) -> Tensor:
    return (x > 0).where(1.0, y / float(op.attr("alpha", 1.0)) + 1)


def _softplus_tanh(x: Tensor) -> Tensor:
    """Return the derivative of x tanh(softplus(x))."""
    t = x.op("Softplus").op("Tanh")
    return t + x * _sigmoid(x) * (1 - t * t)


def _swish(op: GradientNode, x: Tensor, y: Tensor, default: float = 1.0) -> Tensor:
    alpha = float(op.attr("alpha", default))
    s = _sigmoid(x * alpha)
    return s + y * alpha * (1 - s)


def _gelu(op: GradientNode, x: Tensor, y: Tensor) -> Tensor:
    if op.attr("approximate", "none") == "tanh":
        return _gelu_tanh(x)
    return ((x * sqrt(0.5)).op("Erf") + 1) * 0.5 + x * _normal_density(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    c, k = sqrt(2 / pi), 0.044715
    t = ((x * x * k + 1) * x * c).op("Tanh")
    return (t + 1) * 0.5 + x * (1 - t * t) * (x * x * (3 * k) + 1) * (0.5 * c)


def _hard_sigmoid(op: GradientNode, x: Tensor, y: Tensor) -> Tensor:
    return ((y > 0) & (y < 1)).where(x.like(op.attr("alpha", 0.2)), 0.0)


def _hard_swish(op: GradientNode, x: Tensor, y: Tensor) -> Tensor:
    inside = (x > -3) & (x < 3)
    return inside.where(x * (1 / 3) + 0.5, (x >= 3).cast(x.dtype))


def _shrink(op: GradientNode, x: Tensor, y: Tensor) -> Tensor:
    return (x.op("Abs") > float(op.attr("lambd", 0.5))).cast(x.dtype)


# dy/dx by operator, as a function of the node, its input and its output.
_DERIVATIVES: dict[str, Derivative] = {
    "Abs": lambda op, x, y: x.op("Sign"),
    "Acos": lambda op, x, y: -1 / (1 - x * x).op("Sqrt"),
    "Acosh": lambda op, x, y: 1 / (x * x - 1).op("Sqrt"),
    "Asin": lambda op, x, y: 1 / (1 - x * x).op("Sqrt"),
    "Asinh": lambda op, x, y: 1 / (x * x + 1).op("Sqrt"),
    "Atan": lambda op, x, y: 1 / (x * x + 1),
    "Atanh": lambda op, x, y: 1 / (1 - x * x),
    "Celu": _celu,
    "Cos": lambda op, x, y: -x.op("Sin"),
    "Cosh": lambda op, x, y: x.op("Sinh"),
    "Elu": lambda op, x, y: _elu(x, y, op.attr("alpha", 1.0)),
    "Erf": lambda op, x, y: (x * x * -1.0).op("Exp") * (2 / sqrt(pi)),
    "Exp": lambda op, x, y: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda op, x, y: (x > 0).where(x.like(1.0), op.attr("alpha", 0.01)),
    "Log": lambda op, x, y: 1 / x,
    "Mish": lambda op, x, y: _softplus_tanh(x),
    "Neg": lambda op, x, y: x.like(-1.0),
    "Reciprocal": lambda op, x, y: -(y * y),
    "Selu": lambda op, x, y: _elu(
        x, y, op.attr("gamma", _SELU[1]) * op.attr("alpha", _SELU[0]), op.attr("gamma", _SELU[1])
    ),
    "Shrink": _shrink,
    "Sigmoid": lambda op, x, y: y * (1 - y),
    "Sin": lambda op, x, y: x.op("Cos"),
    "Sinh": lambda op, x, y: x.op("Cosh"),
    "Softplus": lambda op, x, y: _sigmoid(x),
    "Softsign": lambda op, x, y: (x.op("Abs") + 1) ** -2.0,
    "Sqrt": lambda op, x, y: 0.5 / y,
    "Swish": _swish,
    "Tan": lambda op, x, y: y * y + 1,
    "Tanh": lambda op, x, y: 1 - y * y,
    "ThresholdedRelu": lambda op, x, y: (x > op.attr("alpha", 1.0)).cast(x.dtype),
    "com.microsoft:FastGelu": lambda op, x, y: _gelu_tanh(_biased(op)),
    "com.microsoft:Gelu": _gelu,
    "com.microsoft:QuickGelu": partial(_swish, default=1.702),
}


def _biased(op: GradientNode) -> Tensor:
    return op.x(0) + op.x(1) if op.has(1) else op.x(0)


@gradient(*_DERIVATIVES)
def unary_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Multiply by the derivative."""
    return dy * _DERIVATIVES[operator_key(op.node.domain, op.node.op_type)](op, op.x(), op.y())


gradient("com.microsoft:FastGelu", of=1)(unary_gradient)
gradient("com.microsoft:BiasGelu", of=None)(lambda op, dy: dy * _gelu(op, op.x(0) + op.x(1), op.y()))


def _above(x: Tensor, bound: float, sign: int = 1) -> Tensor:
    """Return 1 where x is above a bound (below it for sign -1), else 0.

    On CPUs an extremely steep HardSigmoid takes a third of the time of a comparison and the boolean operators after it.
    """
    steep = sign * (1e38 if bound == 0 else 1e30)
    return x.op("HardSigmoid", alpha=steep, beta=-steep * bound)


_UNBOUNDED = 1e6  # larger bounds have no effect


@gradient("Clip")
def clip(op: GradientNode, dy: Tensor) -> Tensor:
    """Pass dy within the bounds."""
    for i, sign in ((1, 1), (2, -1)):
        if op.has(i) and abs(bound := op.scalar(i, 0)) < _UNBOUNDED:
            dy = dy * _above(op.x(), bound, sign)
    return dy


@gradient("Dropout")
def dropout(op: GradientNode, dy: Tensor) -> Tensor:
    """Scale dy where the input was kept; outside of training mode, pass it."""
    if not bool(np.any(op.const(2) if op.has(2) else False)):
        return dy
    mask = op.added_output(1, op.x().shape, BOOL)
    return mask.where(dy * (1 / (1 - op.scalar(1, 0.5))), 0.0)


# The inputs of quantized twins that hold data, and not scales or zero points.
_DATA = {"QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QLinearWhere": (0, 1, 4)}

describe("PRelu", weights=(1,))
describe("Add Mean Sub Sum", alike="sum")
describe("Identity", alike="mean")
describe("Neg", alike="data")
describe("Div Mul", alike="factor")


@traces("""
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum SwiGLU Where Xor com.microsoft:QLinearAdd com.microsoft:QLinearMul
    com.microsoft:QLinearWhere com.microsoft:SwiGLU
""")
def broadcast(op: TraceNode) -> None:
    """Axes of the same place, counted from the right, are one axis."""
    inputs = _DATA.get(op.node.op_type, range(len(op.node.input)))
    operands = [op.x(i) for i in inputs if op.has(i)]
    op.align(", ".join(["*a"] * len(operands)) + " -> *a", operands)


ELEMENTWISE = frozenset({broadcast, unary, unary_with_parameters})
"""The traces of operators that are the same for each element, and whose operands broadcast."""


gradient("Add Identity Sum", of=None)(lambda op, dy: dy)
gradient("Cast CastLike")(lambda op, dy: dy.cast(op.x().dtype))
gradient("CastLike", of=1)(lambda op, dy: op.x(1).zeros())
gradient("Div")(lambda op, dy: dy / op.x(1))
gradient("Div", of=1)(lambda op, dy: -(dy * op.y()).sum_to(op.x(1).shape) / op.x(1))
gradient("Mean", of=None)(lambda op, dy: dy * (1 / len(op.inputs)))
gradient("Mod Sub")(lambda op, dy: dy)
gradient("Mul", of=None)(lambda op, dy: dy * op.x(1 - op.index))
gradient("PRelu")(lambda op, dy: (op.x() > 0).where(dy, dy * op.x(1)))
gradient("PRelu", of=1)(lambda op, dy: dy * op.x().op("Min", 0.0))
gradient("Pow", of=1)(lambda op, dy: dy * op.y() * op.x().op("Log"))
gradient("Relu")(lambda op, dy: dy * _above(op.y(), 0))
gradient("Sub", of=1)(lambda op, dy: -dy.sum_to(op.x(1).shape))
gradient("Where", of=1)(lambda op, dy: op.x(0).where(dy, 0.0))
gradient("Where", of=2)(lambda op, dy: op.x(0).where(dy.zeros(), dy))


@gradient("Pow")
def base(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of x^p with respect to x: p x^(p-1)."""
    p = op.x(1).cast(op.x().dtype)
    return dy * p * op.x() ** (p - 1)


@gradient("Max Min", of=None)
def extreme(op: GradientNode, dy: Tensor) -> Tensor:
    """Divide dy among the operands that are the largest (or the smallest)."""
    chosen = [op.y().equals(x).cast(dy.dtype) for x in op.inputs]
    return dy * chosen[op.index] / reduce(Tensor.__add__, chosen)


@traces("com.microsoft:BiasAdd com.microsoft:BiasDropout")
def biased_sum(op: TraceNode) -> None:
    """A tensor, a bias and a residual, added up."""
    op.align("*a, *a, *a -> *a, *a", inputs=range(min(3, len(op.node.input))))


@traces("com.microsoft:BiasSplitGelu")
def split_gelu(op: TraceNode) -> None:
    """The first half of the channels times Gelu of the second: a channel leaves both."""
    op.align("*b (p c), (p c) -> *b c", p=2)
