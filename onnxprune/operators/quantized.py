"""Quantized operators: scales and zero points are sliced along with what they scale."""

from __future__ import annotations

from onnxprune.operators.contraction import conv_groups, convolve
from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode


@rule("DequantizeLinear", "QuantizeLinear", "com.microsoft:DequantizeLinear", "com.microsoft:QuantizeLinear")
def quantize(op: TraceNode) -> None:
    """One scale for all, one for each position of the axis, or one for each block of positions."""
    rank, axis = len(op.shape(0)), op.axis(1, rank=max(len(op.shape(0)), 1))
    names = [f"a{chr(97 + i)}" for i in range(rank)]
    scale = op.shape(1)
    blocked = len(scale) == rank and rank > 0 and op.attr("block_size", 0)
    data = " ".join(f"(b {n})" if blocked and i == axis else n for i, n in enumerate(names))
    if blocked:
        scales = [" ".join("b" if i == axis else n for i, n in enumerate(names))] * 2
    else:
        scales = [_per_channel(op, i, names[axis] if rank else "u") for i in (1, 2)]
    op.align(f"{data}, {', '.join(scales)} -> {data}", b=scale[axis] if blocked else 1)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(op: TraceNode) -> None:
    """One scale for all, from the smallest and largest value."""
    op.approximate(op.x(0), range(len(op.shape(0))), "its scale is taken over these channels")
    op.align("*a -> *a, , ")


@rule("QLinearConv", "com.microsoft:QLinearConv")
def qlinear_conv(op: TraceNode) -> None:
    """As Conv; the weight's scale and zero point are one for all or one for each output channel.

    ONNX Runtime's own may have its channels last.
    """
    last = bool(op.attr("channels_last", 0))
    x, y = ("n *s (g i)", "n *t (g o)") if last else ("n (g i) *s", "n (g o) *t")
    w_scale, w_zero = (_per_channel(op, i, "(g o)") for i in (4, 5))
    convolve(
        op,
        f"{x}, {_per_channel(op, 1, 'u')}, {_per_channel(op, 2, 'u')}, g o i *k, {w_scale}, {w_zero},"
        f" {_per_channel(op, 6, 'u')}, {_per_channel(op, 7, 'u')}, (g o) -> {y}",
        weight=3,
        axis=-1 if last else 1,
    )


@rule("ConvInteger")
def conv_integer(op: TraceNode) -> None:
    """As Conv, with zero points."""
    convolve(op, f"n (g i) *s, g o i *k, {_per_channel(op, 2, 'u')}, {_per_channel(op, 3, '(g o)')} -> n (g o) *t")


rewrites("ConvInteger")(conv_groups)


@rewrites("QLinearConv", "com.microsoft:QLinearConv")
def qlinear_conv_groups(edit: RewriteNode) -> None:
    """As for Conv."""
    if edit.attr("group", 1) > 1:
        channels = edit.new_shape(0)[-1 if edit.attr("channels_last", 0) else 1]
        edit.set_attr("group", channels // edit.new_shape(3)[1])


@rule("MatMulInteger")
def matmul_integer(op: TraceNode) -> None:
    """As MatMul, with zero points for rows and columns."""
    op.align(f"*b m k, *b k n, {_per_channel(op, 2, 'm')}, {_per_channel(op, 3, 'n')} -> *b m n")


@rule("QLinearMatMul")
def qlinear_matmul(op: TraceNode) -> None:
    """As MatMul, with scales and zero points for rows and columns."""
    a, b, y = ([_per_channel(op, i, n) for i in pair] for n, pair in (("m", (1, 2)), ("n", (4, 5)), ("u", (6, 7))))
    op.align(f"*b m k, {a[0]}, {a[1]}, *b k n, {b[0]}, {b[1]}, {y[0]}, {y[1]} -> *b m n")


def _per_channel(op: TraceNode, i: int, axis: str) -> str:
    """Return the spec of a scale or zero point: nothing for a scalar, an axis for one value per channel."""
    shape = op.shape(i) if op.has(i) else ()
    return "" if not shape else (axis if shape[0] > 1 else "u")
