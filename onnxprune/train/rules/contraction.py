"""Matrix products."""

from __future__ import annotations

from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import gradient


@gradient("MatMul", of=0)
def left(op: GradientNode, dy: Tensor) -> Tensor:
    """Of A B by A: dY B^T."""
    a, b, dy = _as_matrices(op, dy)
    return _restored(dy @ b.mT, a, op.x(0))


@gradient("MatMul", of=1)
def right(op: GradientNode, dy: Tensor) -> Tensor:
    """Of A B by B: A^T dY; where all matrices of the stack meet the same B, one product of their rows."""
    a, b, dy = _as_matrices(op, dy)
    if b.size == b.shape[-1] * b.shape[-2] and dy.size == a.size // a.shape[-1] * dy.shape[-1]:
        rows, columns = a.reshape((-1, a.shape[-1])), dy.reshape((-1, dy.shape[-1]))
        return rows.op("Gemm", columns, transA=1).reshape(op.x(1).shape)
    return _restored(a.mT @ dy, b, op.x(1))


def _as_matrices(op: GradientNode, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give vectors the axis that NumPy would add."""
    a, b = op.x(0), op.x(1)
    batch = dy.shape[: dy.rank - (a.rank > 1) - (b.rank > 1)]
    rows = a.reshape((1, *a.shape)) if a.rank == 1 else a
    columns = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    return rows, columns, dy.reshape((*batch, rows.shape[-2], columns.shape[-1]))


def _restored(found: Tensor, operand: Tensor, given: Tensor) -> Tensor:
    return found.sum_to(operand.shape).reshape(given.shape)


@gradient("Gemm", of=0)
def gemm_a(op: GradientNode, dy: Tensor) -> Tensor:
    """Of alpha A B + beta C by A: alpha dY B^T."""
    alpha, b = op.attr("alpha", 1.0), op.attr("transB", 0)
    if op.attr("transA", 0):
        return op.x(1).op("Gemm", dy, alpha=alpha, transA=b, transB=1)
    return dy.op("Gemm", op.x(1), alpha=alpha, transB=1 - b)


@gradient("Gemm", of=1)
def gemm_b(op: GradientNode, dy: Tensor) -> Tensor:
    """Of alpha A B + beta C by B: alpha A^T dY."""
    alpha, a = op.attr("alpha", 1.0), op.attr("transA", 0)
    if op.attr("transB", 0):
        return dy.op("Gemm", op.x(0), alpha=alpha, transA=1, transB=a)
    return op.x(0).op("Gemm", dy, alpha=alpha, transA=1 - a)


@gradient("Gemm", of=2)
def gemm_c(op: GradientNode, dy: Tensor) -> Tensor:
    """Of alpha A B + beta C by C: beta dY."""
    beta = op.attr("beta", 1.0)
    dc = dy.sum_to(op.x(2).shape)
    return dc if beta == 1 else dc * beta


@gradient("Einsum", of=None)
def einsum(op: GradientNode, dy: Tensor) -> Tensor:
    """The equation with the output in the operand's place; letters that only the operand has are spread."""
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
    """Return the terms of an equation and its result, an ellipsis written out in letters of its own."""
    left, arrow, result = op.attr("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        result = "..." * ("." in left) + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    widths = [x.rank - len(t.replace("...", "")) for t, x in zip(terms, op.inputs, strict=True) if "." in t]
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in left]
    if len({*widths}) > 1:
        raise NotImplementedError("ellipses stand for different numbers of axes")
    written = "".join(free[: max(widths, default=0)])
    return [t.replace("...", written) for t in terms], result.replace("...", written)
