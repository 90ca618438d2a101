"""Quantized operators of ONNX Runtime's own domain: one scale and zero point per tensor, or one per output channel."""

from __future__ import annotations

from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.indexing import join
from onnxprune.operators.registry import leave, rewrites, rule
from onnxprune.operators.traced import TraceNode

_BIAS = 6  # of QGemm
_ZERO_POINTS, _GROUP_INDEX = 3, 4  # of MatMulNBits


@rule("com.microsoft:QLinearAdd", "com.microsoft:QLinearMul")
def binary(op: TraceNode) -> None:
    """Data, scale and zero point of each operand: axes of the same place are one axis."""
    op.align("*a, *a -> *a", [op.x(0), op.x(3)])


@rule("com.microsoft:QLinearWhere")
def where(op: TraceNode) -> None:
    """A condition, then data, scale and zero point of each operand."""
    op.align("*a, *a, *a -> *a", [op.x(0), op.x(1), op.x(4)])


@rule("com.microsoft:QLinearLeakyRelu", "com.microsoft:QLinearSigmoid")
def unary(op: TraceNode) -> None:
    """Each element by itself."""
    op.give(op.x(0))


@rule("com.microsoft:QLinearSoftmax")
def softmax(op: TraceNode) -> None:
    """Every position of the axis counts."""
    axis = op.axis(-1)
    op.give(op.pin_axes(op.x(0), [axis], "OP204", "it normalizes over this axis, so each position counts"))


@rule("com.microsoft:QLinearAveragePool", "com.microsoft:QLinearGlobalAveragePool")
def pool(op: TraceNode) -> None:
    """Positions are mixed within a channel."""
    op.align("n *s c -> n *t c" if op.attr("channels_last", 0) else "n c *s -> n c *t", [op.x(0)])


@rule("com.microsoft:NhwcMaxPool")
def max_pool(op: TraceNode) -> None:
    """Positions are mixed within a channel, channels last."""
    op.align("n *s c -> n *t c")


@rule("com.microsoft:QLinearConcat")
def concat(op: TraceNode) -> None:
    """Scale and zero point of the result, then data, scale and zero point of each operand."""
    join(op, [op.x(i) for i in range(2, len(op.node.input), 3)], op.axis(0, rank=len(op.out_shape())))


@rule("com.microsoft:QGemm")
def qgemm(op: TraceNode) -> None:
    """As Gemm; the weight's scale and zero point are one for all or one for each output."""
    a = "k m" if op.attr("transA", 0) else "m k"
    b = "n k" if op.attr("transB", 0) else "k n"
    scales = ["n" if op.has(i) and op.shape(i) not in ((), (1,)) else _scalar(op, i) for i in (4, 5)]
    bias = " ".join("mn"[2 - len(op.shape(_BIAS)) :]) if op.has(_BIAS) else ""
    operands = [op.x(i) if op.has(i) else None for i in (0, 3, 4, 5, _BIAS) if i < len(op.node.input)]
    op.align(f"{a}, {b}, {', '.join(scales)}, {bias} -> m n", operands)


@rule("com.microsoft:DynamicQuantizeMatMul", "com.microsoft:MatMulIntegerToFloat")
def matmul(op: TraceNode) -> None:
    """As MatMul; scales and zero points of the weight and a bias for each column."""
    first = 2 if op.node.op_type == "DynamicQuantizeMatMul" else 3
    columns = [i for i in range(first, len(op.node.input)) if op.has(i) and op.shape(i) not in ((), (1,))]
    spec = ", ".join("n" for _ in columns)
    op.align(f"*b m k, *b k n, {spec} -> *b m n", [op.x(0), op.x(1), *(op.x(i) for i in columns)])


def _scalar(op: TraceNode, i: int) -> str:
    return "u" * len(op.shape(i)) if op.has(i) else ""


@rule("com.microsoft:MatMulNBits")
def matmul_n_bits(op: TraceNode) -> None:
    """As MatMul, the weight in blocks of a few bits along the input, each with its scale: rows leave, and whole blocks.

    Zero points may be packed, those of several blocks in a byte: then these leave together.
    """
    blocks, size = op.shape(1)[1], op.attr("block_size")
    together = blocks // op.shape(_ZERO_POINTS)[-1] if op.has(_ZERO_POINTS) else 1
    spec = "*b (c p k), n (c p) w, n (c p), n c, z, n -> *b n"
    packed = op.has(_ZERO_POINTS) and blocks != together * op.shape(_ZERO_POINTS)[-1]
    flat = any(op.has(i) and len(op.shape(i)) != 2 for i in (2, _ZERO_POINTS))
    if packed or flat or op.has(_GROUP_INDEX) or op.attr("K") != blocks * size:
        op.give_up("OP211", "its blocks don't come out even")
        return
    op.align(spec, p=together, k=size, c=blocks // together)


@rewrites("com.microsoft:MatMulNBits")
def bits_sizes(edit: RewriteNode) -> None:
    """The sizes that remain."""
    edit.set_attr("K", edit.new_shape(0)[-1])
    edit.set_attr("N", edit.new_shape(1)[0])


leave(
    "its weights are packed",
    *("com.microsoft:GatherBlockQuantized", "com.microsoft:MatMulBnb4", "com.microsoft:MatMulFpQ4"),
    *("com.microsoft:QMoE", "com.microsoft:QOrderedAttention", "com.microsoft:QOrderedMatMul"),
)
