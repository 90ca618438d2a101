"""Operators that sum over channels: convolutions and matrix products."""

from __future__ import annotations

from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode


@rule("Conv")
def conv(op: TraceNode) -> None:
    """A convolution: input channels meet the weight's, output channels are the weight's, group by group.

    One of a single position, which mixes no neighbors, leaves the other axes as they are.
    """
    single = set(op.shape(1)[2:]) | set(op.attr("strides", [1])) == {1} and op.shape(0)[2:] == op.out_shape()[2:]
    convolve(op, f"n (g i) *s, g o i *k, (g o) -> n (g o) {'*s' if single else '*t'}")


def convolve(op: TraceNode, spec: str, weight: int = 1, axis: int = 1) -> None:
    """Apply the spec of a convolution whose weight, one of the inputs, has its groups in an axis of their own.

    The channels of data are on ``axis``.

    Every group drops its own channels, as many as the others; or whole groups leave, always where a group has a single
    channel on either side.
    """
    groups = op.attr("group", 1)
    operands = [op.x(i) if op.has(i) else None for i in range(len(op.node.input))]
    per_group = (op.shape(0)[axis] // groups, op.out_shape()[axis] // groups)
    whole = groups > 1 and (op.grouped == "groups" or 1 in per_group)
    operands[weight] = op.in_groups(weight, groups, whole=whole)
    if whole:
        op.align(spec, operands, structure={"i", "o"}, g=groups)
    else:
        op.align(spec, operands, balanced={"g"}, g=groups)


@rule("CausalConvWithState")
def causal_conv(op: TraceNode) -> None:
    """A depthwise convolution over time whose last inputs are carried along."""
    op.align("n c *s, c i *k, c, n c *p -> n c *s, n c *p")


@rule("ConvTranspose")
def conv_transpose(op: TraceNode) -> None:
    """A transposed convolution: the weight holds input channels first."""
    convolve(op, "n (g i) *s, g i o *k, (g o) -> n (g o) *t")


@rewrites("Conv")
def conv_groups(edit: RewriteNode) -> None:
    """Groups that lose channels in equal number stay; depthwise groups leave with their channel."""
    if edit.attr("group", 1) > 1:
        edit.set_attr("group", edit.new_shape(0)[1] // edit.new_shape(1)[1])


@rewrites("ConvTranspose")
def conv_transpose_groups(edit: RewriteNode) -> None:
    """As for Conv; the weight's second axis is the output channels of one group."""
    if edit.attr("group", 1) > 1:
        edit.set_attr("group", edit.new_out_shape(0)[1] // edit.new_shape(1)[1])


@rule("Gemm")
def gemm(op: TraceNode) -> None:
    """A matrix product with optional transposes and a bias that broadcasts."""
    a = "k m" if op.attr("transA", 0) else "m k"
    b = "n k" if op.attr("transB", 0) else "k n"
    c = " ".join("mn"[2 - len(op.shape(2)) :]) if op.has(2) else ""
    op.align(f"{a}, {b}, {c} -> m n")


@rule("MatMul")
def matmul(op: TraceNode) -> None:
    """A stack of matrix products; a vector lacks the axis that NumPy would add."""
    a = "k" if len(op.shape(0)) == 1 else "*b m k"
    b = "k" if len(op.shape(1)) == 1 else "*b k n"
    batch = "*b" if len(op.shape(0)) > 2 or len(op.shape(1)) > 2 else ""
    op.align(f"{a}, {b} -> {batch}{' m' if 'm' in a else ''}{' n' if 'n' in b else ''}")


@rule("Einsum")
def einsum(op: TraceNode) -> None:
    """The equation is the spec."""
    equation = op.attr("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = "..." * ("..." in left) + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    op.align(f"{','.join(map(_spaced, left.split(',')))} -> {_spaced(right)}")


def _spaced(term: str) -> str:
    """Write an einsum term in our notation: letters apart, the ellipsis a starred name."""
    return " ".join("*e" if c == "." else c for c in term.replace("...", "."))
