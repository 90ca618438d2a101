"""Operators that move data: their gradients move it back."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.model.tape import INT64, Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import flat, gradient


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: GradientNode, dy: Tensor) -> Tensor:
    """Give the shape back."""
    return dy.reshape(op.x().shape)


@gradient("Transpose")
def transpose(op: GradientNode, dy: Tensor) -> Tensor:
    """Put the axes back."""
    order = op.attr("perm") or range(op.x().rank)[::-1]
    return dy.transpose(np.argsort(order).tolist())


@gradient("Expand")
def expand(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum over the copies, which is done for every rule."""
    return dy


@gradient("Tile")
def tile(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum over the copies."""
    shape = op.x().shape
    apart = [size for n, m in zip(dy.shape, shape, strict=True) for size in (n // m, m)]
    return dy.reshape(apart).sum(range(0, 2 * len(shape), 2)).reshape(shape)


@gradient("Concat", of=None)
def concat(op: GradientNode, dy: Tensor) -> Tensor:
    """Cut the piece out."""
    axis = op.axis(0)
    sizes = [x.shape[axis] for x in op.inputs]
    start = sum(sizes[: op.index])
    return dy.slice([axis], [start], [start + sizes[op.index]])


@gradient("Split")
def split(op: GradientNode, dy: Tensor) -> Tensor:
    """Put the pieces together."""
    pieces = [op.dy(i) for i in range(len(op.node.output))]
    return op.tape.emit("Concat", *pieces, axis=op.axis(0))


@gradient("DepthToSpace")
def depth_to_space(op: GradientNode, dy: Tensor) -> Tensor:
    """Gather the blocks into channels again, in the order they came from."""
    n, c, h, w = op.x().shape
    b = op.attr("blocksize")
    apart = dy.reshape((n, c // b**2, h, b, w, b))
    order = (0, 3, 5, 1, 2, 4) if op.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return apart.transpose(order).reshape((n, c, h, w))


@gradient("SpaceToDepth")
def space_to_depth(op: GradientNode, dy: Tensor) -> Tensor:
    """Spread the blocks again."""
    return dy.op("DepthToSpace", blocksize=op.attr("blocksize"))


@gradient("Trilu")
def trilu(op: GradientNode, dy: Tensor) -> Tensor:
    """Keep the same triangle."""
    k = [op.x(1)] if op.has(1) else []
    return dy.op("Trilu", *k, upper=op.attr("upper", 1))


@gradient("CumSum")
def cumsum(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum up from the other end."""
    return dy.op("CumSum", op.x(1), exclusive=op.attr("exclusive", 0), reverse=1 - op.attr("reverse", 0))


@gradient("Slice")
def cut(op: GradientNode, dy: Tensor) -> Tensor:
    """Put the piece into zeros; where steps leave gaps, element by element."""
    starts, ends, axes, steps = _slice_of(op)
    shape = op.x().shape
    pieces = [slice(0, n, 1) for n in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, step = slice(start, end if abs(end) < 2**62 else None, step).indices(shape[axis])
        pieces[axis] = slice(first, last, step)
    if all(p.step == 1 for p in pieces):
        return dy.pad(
            [p.start for p in pieces], [n - p.start - m for p, n, m in zip(pieces, shape, dy.shape, strict=True)]
        )
    for axis, piece in enumerate(pieces):
        if piece != slice(0, shape[axis], 1):
            places = np.arange(shape[axis])[_whole(piece)]
            dy = _placed(dy, axis, places, shape[axis])
    return dy


def _whole(piece: slice) -> slice:
    return slice(piece.start, None if piece.stop < 0 else piece.stop, piece.step)


def _placed(dy: Tensor, axis: int, places: np.ndarray, size: int) -> Tensor:
    """Add positions along an axis into zeros of another size, at given places."""
    shape = (*dy.shape[:axis], size, *dy.shape[axis + 1 :])
    column = places.astype(np.int64).reshape([-1 if a == axis else 1 for a in range(dy.rank)])
    indices = dy.tape.constant(column).expand(dy.shape)
    return dy.like(np.zeros((1,) * dy.rank)).expand(shape).scatter_add(indices, dy, axis)


def _slice_of(op: GradientNode) -> tuple[list[int], list[int], list[int], list[int]]:
    starts, ends, axes, steps = (None if v is None else v.tolist() for v in map(op.const, range(1, 5)))
    assert starts is not None and ends is not None
    axes = range(len(starts)) if axes is None else axes
    return list(starts), list(ends), [a % op.x().rank for a in axes], steps or [1] * len(starts)


@gradient("Pad")
def pad(op: GradientNode, dy: Tensor) -> Tensor:
    """Cut the padding off; where it repeats the content, add it to where that came from."""
    shape, mode = op.x().shape, op.attr("mode", "constant")
    given = op.const(1)
    assert given is not None
    chosen = op.const(3)
    axes = range(len(shape)) if chosen is None else [int(a) % len(shape) for a in chosen]
    amounts = dict(zip(axes, given.reshape(2, -1).T.tolist(), strict=True))
    if mode == "constant":
        starts = [max(amounts[a][0], 0) for a in axes]
        ends = [dy.shape[a] - max(amounts[a][1], 0) for a in axes]
        inner = dy.slice(list(axes), starts, ends)
        lost = [[max(-amounts.get(a, (0, 0))[side], 0) for a in range(len(shape))] for side in (0, 1)]
        return inner.pad(*lost)
    for axis, (before, after) in amounts.items():
        if before or after:
            places = np.pad(np.arange(shape[axis]), (before, after), mode=mode)
            dy = _placed(dy, axis, places, shape[axis])
    return dy


@gradient("Gather")
def gather(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each piece to where it was taken from."""
    axis, table, indices = op.axis(0), op.x(0), op.x(1)
    before, after = table.shape[:axis], table.shape[axis + 1 :]
    count = indices.size
    pieces = dy.reshape((prod(before), count, prod(after)))
    if op.node.input[1] in op.tape.constants:
        places = op.tape.constants[indices.name].ravel().astype(np.int64) % table.shape[axis]
        return _placed(pieces, 1, places, table.shape[axis]).reshape(table.shape)
    wanted = indices.cast(INT64).reshape((1, count, 1)).expand(pieces.shape)
    zeros = pieces.like(np.zeros((1, 1, 1))).expand((prod(before), table.shape[axis], prod(after)))
    return zeros.scatter_add(wanted, pieces, 1).reshape(table.shape)


@gradient("GatherElements")
def gather_elements(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each element to where it was taken from."""
    return op.x().zeros().scatter_add(op.x(1), dy, op.axis(0))


@gradient("GatherND")
def gather_nd(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each piece to where it was taken from."""
    if op.attr("batch_dims", 0):
        raise NotImplementedError("it has batch axes")
    return op.tape.emit("ScatterND", op.x().zeros(), op.x(1), dy, reduction="add")


@gradient("ScatterND")
def scattered_into(op: GradientNode, dy: Tensor) -> Tensor:
    """Nothing passes where something was written over."""
    if op.attr("reduction", "none") == "add":
        return dy
    _replacing(op)
    return op.tape.emit("ScatterND", dy, op.x(1), op.x(2).zeros())


@gradient("ScatterND", of=2)
def scattered(op: GradientNode, dy: Tensor) -> Tensor:
    """Gather from where it was written."""
    _replacing(op, "add")
    return dy.op("GatherND", op.x(1))


@gradient("ScatterElements")
def elements_into(op: GradientNode, dy: Tensor) -> Tensor:
    """Nothing passes where something was written over."""
    if op.attr("reduction", "none") == "add":
        return dy
    _replacing(op)
    return op.tape.emit("ScatterElements", dy, op.x(1), op.x(2).zeros(), axis=op.axis(0))


@gradient("ScatterElements", of=2)
def elements(op: GradientNode, dy: Tensor) -> Tensor:
    """Gather from where it was written."""
    _replacing(op, "add")
    return dy.op("GatherElements", op.x(1), axis=op.axis(0))


def _replacing(op: GradientNode, *others: str) -> None:
    reduction = op.attr("reduction", "none")
    if reduction not in ("none", *others):
        raise NotImplementedError(f"its reduction is {reduction!r}")


flat(*["ConstantOfShape", "EyeLike", "NonZero", "OneHot", "Range", "Shape", "Size"])
