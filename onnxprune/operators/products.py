"""Matrix products: trace, rewrite, gradients and linear view of every kind.

``Gemm`` and its twins differ in where their inputs stand, so one spec serves them all.
"""

from __future__ import annotations

from math import prod
from string import ascii_uppercase

from onnxprune.channels.values import Shape
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import ACTIVATED, FUSED, INTEGERS, describe, gradient, rewrites, traces
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.linear import ProductLayer
from onnxprune.operators.node import Node
from onnxprune.operators.quantized import per_channel
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

describe("Gemm", factors=(0, 1), weights=(0, 1, 2), linear=ProductLayer.of)
describe("com.microsoft:FusedGemm", weights=(0, 1, 2))
describe("com.microsoft:FusedMatMulActivation com.microsoft:GemmFastGelu", weights=(0, 1))
describe(
    "com.microsoft:FusedGemm com.microsoft:FusedMatMulActivation com.microsoft:GemmFastGelu",
    factors=(0, 1),
    reasons={"linear": ACTIVATED, "gradient": FUSED},
)
describe("com.microsoft:QGemm", factors=(0, 3), zero_points=((3, 5, -1),), reasons=INTEGERS)


def _matrices(op: TraceNode) -> tuple[str, str]:
    """Return the specs of two matrices, transposed as the attributes say."""
    return "k m" if op.attr("transA", 0) else "m k", "n k" if op.attr("transB", 0) else "k n"


def _gemm_bias(op: TraceNode, i: int) -> str:
    """Return the spec of a bias that broadcasts to m n."""
    return " ".join("mn"[2 - len(op.shape(i)) :]) if op.has(i) else ""


@traces("Gemm com.microsoft:FusedGemm")
def gemm(op: TraceNode) -> None:
    """A matrix product with optional transposes and a bias that broadcasts, perhaps an activation."""
    a, b = _matrices(op)
    op.align(f"{a}, {b}, {_gemm_bias(op, 2)} -> m n")


@traces("com.microsoft:QGemm")
def qgemm(op: TraceNode) -> None:
    """As Gemm; the weight's scale and zero point are one for all or one for each output."""
    a, b = _matrices(op)
    scales = [per_channel(op, i, "n") for i in (4, 5)]
    op.align(f"{a}, {b}, {', '.join(scales)}, {_gemm_bias(op, 6)} -> m n", inputs=(0, 3, 4, 5, 6))


@gradient("Gemm", of=0)
def gemm_a(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of alpha A B + beta C with respect to A: alpha dY B^T."""
    alpha, b = op.attr("alpha", 1.0), op.attr("transB", 0)
    if op.attr("transA", 0):
        return op.x(1).op("Gemm", dy, alpha=alpha, transA=b, transB=1)
    return dy.op("Gemm", op.x(1), alpha=alpha, transB=1 - b)


@gradient("Gemm", of=1)
def gemm_b(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of alpha A B + beta C with respect to B: alpha A^T dY."""
    alpha, a = op.attr("alpha", 1.0), op.attr("transA", 0)
    if op.attr("transB", 0):
        return dy.op("Gemm", op.x(0), alpha=alpha, transA=1, transB=a)
    return op.x(0).op("Gemm", dy, alpha=alpha, transA=1 - a)


@gradient("Gemm", of=2)
def gemm_c(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of alpha A B + beta C with respect to C: beta dY."""
    beta = op.attr("beta", 1.0)
    dc = dy.sum_to(op.x(2).shape)
    return dc if beta == 1 else dc * beta


describe("MatMul", factors=(0, 1), alike="factor", weights=(0, 1), linear=ProductLayer.of)


def _transposed_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count by hand, since the forms with transposed batches are left alone and have no spec."""
    return prod(y) * x[0][-2 if node.attr("transA", 0) else -1]


describe("com.microsoft:FusedMatMul com.microsoft:TransposeMatMul", factors=(0, 1), weights=(0, 1))
describe("com.microsoft:FusedMatMul com.microsoft:TransposeMatMul", macs=_transposed_macs)
describe("com.microsoft:FusedMatMul com.microsoft:TransposeMatMul", linear=ProductLayer.of, reasons={"gradient": FUSED})


@traces("MatMul")
def matmul(op: TraceNode) -> None:
    """A stack of matrix products; a vector lacks the axis that NumPy would add."""
    a = "k" if len(op.shape(0)) == 1 else "*b m k"
    b = "k" if len(op.shape(1)) == 1 else "*b k n"
    batch = "*b" if len(op.shape(0)) > 2 or len(op.shape(1)) > 2 else ""
    op.align(f"{a}, {b} -> {batch}{' m' if 'm' in a else ''}{' n' if 'n' in b else ''}")


@traces("com.microsoft:FusedMatMul com.microsoft:FusedMatMulActivation com.microsoft:TransposeMatMul")
def fused_matmul(op: TraceNode) -> None:
    """MatMul of transposed matrices."""
    a, b = _matrices(op)
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        op.give_up("OP211", "transposed batches are left alone")
        return
    op.align(f"*b {a}, *b {b} -> *b m n")


@gradient("MatMul", of=0)
def left(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of A B with respect to A: dY B^T."""
    a, b, dy = _as_matrices(op, dy)
    return (dy @ b.mT).sum_to(a.shape).reshape(op.x(0).shape)


@gradient("MatMul", of=1)
def right(op: GradientNode, dy: Tensor) -> Tensor:
    """Gradient of A B with respect to B: A^T dY; where all matrices of the stack share B, one product of all rows."""
    a, b, dy = _as_matrices(op, dy)
    if b.size == b.shape[-1] * b.shape[-2] and dy.size == a.size // a.shape[-1] * dy.shape[-1]:
        rows, columns = a.reshape((-1, a.shape[-1])), dy.reshape((-1, dy.shape[-1]))
        return rows.op("Gemm", columns, transA=1).reshape(op.x(1).shape)
    return (a.mT @ dy).sum_to(b.shape).reshape(op.x(1).shape)


def _as_matrices(op: GradientNode, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, B and dY with the axes that NumPy would add to vectors."""
    a, b = op.x(0), op.x(1)
    batch = dy.shape[: dy.rank - (a.rank > 1) - (b.rank > 1)]
    rows = a.reshape((1, *a.shape)) if a.rank == 1 else a
    columns = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    return rows, columns, dy.reshape((*batch, rows.shape[-2], columns.shape[-1]))


@traces("com.microsoft:GemmFastGelu")
def matmul_gelu(op: TraceNode) -> None:
    """MatMul, a bias for each column and Gelu."""
    op.align("*b m k, *b k n, n -> *b m n")


describe("Einsum", factors=(0, 1, 2, 3), weights=tuple(range(16)), linear=ProductLayer.of_equation)


@traces("Einsum")
def einsum(op: TraceNode) -> None:
    """The equation is the spec."""
    terms, result = _equation(op)
    op.align(f"{','.join(map(_spaced, terms))} -> {_spaced(result)}")


def _equation(op: Node) -> tuple[list[str], str]:
    """Return the terms of an equation and its result, explicit or not."""
    left, arrow, result = op.attr("equation").replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        result = "..." * ("." in left) + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    return left.split(","), result


def _spaced(term: str) -> str:
    """Return an einsum term in our notation: letters apart, the ellipsis as a starred name."""
    return " ".join("*e" if c == "." else c for c in term.replace("...", "."))


@gradient("Einsum", of=None)
def einsum_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """The equation with the output in the operand's place; letters that only the operand has are broadcast."""
    terms, result = _terms(op)
    mine = terms[op.index]
    if len(set(mine)) < len(mine):
        raise NotImplementedError("a diagonal is taken")
    others = [(t, x) for i, (t, x) in enumerate(zip(terms, op.inputs, strict=True)) if i != op.index]
    known = set(result).union(*(t for t, _ in others))
    target = "".join(c for c in mine if c in known)
    equation = ",".join([result, *(t for t, _ in others)]) + "->" + target
    found = op.tape.emit("Einsum", dy, *(x for _, x in others), equation=equation)
    spread = [n if c in known else 1 for c, n in zip(mine, op.x(op.index).shape, strict=True)]
    return found.reshape(spread).expand(op.x(op.index).shape)


def _terms(op: GradientNode) -> tuple[list[str], str]:
    """Return the terms of an equation and its result, an ellipsis written as letters."""
    terms, result = _equation(op)
    widths = [x.rank - len(t.replace("...", "")) for t, x in zip(terms, op.inputs, strict=True) if "." in t]
    free = [c for c in ascii_uppercase if not any(c in term for term in terms)]
    if len({*widths}) > 1:
        raise NotImplementedError("ellipses stand for different numbers of axes")
    written = "".join(free[: max(widths, default=0)])
    return [t.replace("...", written) for t in terms], result.replace("...", written)


describe("MatMulInteger", factors=(0, 1), zero_points=((0, 2, -2), (1, 3, -1)), reasons=INTEGERS)
describe("QLinearMatMul", factors=(0, 3), zero_points=((0, 2, -2), (3, 5, -1)), reasons=INTEGERS)
describe("com.microsoft:DynamicQuantizeMatMul", factors=(0, 1), zero_points=((1, 3, -1),), reasons=INTEGERS)
describe("com.microsoft:MatMulIntegerToFloat", factors=(0, 1), zero_points=((0, 4, -2), (1, 5, -1)), reasons=INTEGERS)


@traces("MatMulInteger")
def matmul_integer(op: TraceNode) -> None:
    """As MatMul, with zero points for rows and columns."""
    op.align(f"*b m k, *b k n, {per_channel(op, 2, 'm')}, {per_channel(op, 3, 'n')} -> *b m n")


@traces("QLinearMatMul")
def qlinear_matmul(op: TraceNode) -> None:
    """As MatMul, with scales and zero points for rows and columns."""
    a, b, y = ([per_channel(op, i, n) for i in pair] for n, pair in (("m", (1, 2)), ("n", (4, 5)), ("u", (6, 7))))
    op.align(f"*b m k, {a[0]}, {a[1]}, *b k n, {b[0]}, {b[1]}, {y[0]}, {y[1]} -> *b m n")


@traces("com.microsoft:DynamicQuantizeMatMul com.microsoft:MatMulIntegerToFloat")
def matmul_of_integers(op: TraceNode) -> None:
    """As MatMul; scales and zero points of the weight and a bias for each column."""
    first = 2 if op.node.op_type == "DynamicQuantizeMatMul" else 3
    columns = [i for i in range(first, len(op.node.input)) if op.has(i) and op.shape(i) not in ((), (1,))]
    op.align(f"*b m k, *b k n, {', '.join('n' for _ in columns)} -> *b m n", inputs=(0, 1, *columns))


def _bits_macs(node: Node, x: list[Shape], y: Shape) -> int:
    return prod(y) * x[0][-1]


_ZERO_POINTS, _GROUP_INDEX = 3, 4  # of MatMulNBits
describe("com.microsoft:MatMulNBits", factors=(0, 1), macs=_bits_macs, reasons=INTEGERS)


@traces("com.microsoft:MatMulNBits")
def matmul_n_bits(op: TraceNode) -> None:
    """As MatMul, the weight in blocks of a few bits along the input, each with its scale: rows leave, and whole blocks.

    Zero points may be packed, those of several blocks in a byte: then these blocks leave together.
    """
    blocks, size = op.shape(1)[1], op.attr("block_size")
    together = blocks // op.shape(_ZERO_POINTS)[-1] if op.has(_ZERO_POINTS) else 1
    packed = op.has(_ZERO_POINTS) and blocks != together * op.shape(_ZERO_POINTS)[-1]
    flat = any(op.has(i) and len(op.shape(i)) != 2 for i in (2, _ZERO_POINTS))
    if packed or flat or op.has(_GROUP_INDEX) or op.attr("K") != blocks * size:
        op.give_up("OP211", "its blocks don't come out even")
        return
    op.align("*b (c p k), n (c p) w, n (c p), n c, z, n -> *b n", p=together, k=size, c=blocks // together)


@rewrites("com.microsoft:MatMulNBits")
def bits_sizes(edit: RewriteNode) -> None:
    """The sizes that remain."""
    edit.set_attr("K", edit.new_shape(0)[-1])
    edit.set_attr("N", edit.new_shape(1)[0])
