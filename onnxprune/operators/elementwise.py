"""Operators that act on each element by itself: axes meet under broadcasting."""

from __future__ import annotations

from onnxprune.operators.registry import rule
from onnxprune.operators.traced import TraceNode

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    com.microsoft:BiasGelu com.microsoft:FastGelu com.microsoft:Gelu com.microsoft:QuickGelu
"""
_EXPERIMENTAL = "Affine ParametricSoftplus ScaledTanh"  # of early exporters
_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum SwiGLU Where Xor
"""


@rule(*_UNARY.split(), *_EXPERIMENTAL.split())
def unary(op: TraceNode) -> None:
    """Each element by itself; the contrib spellings of Gelu take a bias."""
    if len(op.inputs) > 1:
        op.align("*a, *a -> *a")
    else:
        op.give(op.x(0))


@rule("CastLike", "Clip", "Dropout")
def unary_with_parameters(op: TraceNode) -> None:
    """Each element by itself; further inputs are scalars, further outputs masks."""
    for i in range(len(op.node.output)):
        op.give(op.x(0), i)


@rule(*_BROADCAST.split())
def broadcast(op: TraceNode) -> None:
    """Axes of the same place, counted from the right, are one axis."""
    operands = op.inputs
    op.align(", ".join(["*a"] * len(operands)) + " -> *a", operands)
