"""Operators that pick positions of axes by indices, and that write to them."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.channels.align import align
from onnxprune.channels.ledger import bounded
from onnxprune.channels.values import Ids, Shape, Value, take
from onnxprune.model.tape import INT64, Tensor
from onnxprune.operators.card import INTEGER, TWIN, describe, gradient, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.slicing import AT_RUN_TIME, put_back
from onnxprune.operators.traced import TraceNode

describe("Gather", weights=(0,), table=0, alike="mean")
describe("com.microsoft:GatherBlockQuantized com.microsoft:TorchEmbedding", table=0)
describe("Unique com.microsoft:Unique", sizing=(0,))
describe("Compress", sizing=(1,))
describe("Gather GatherElements GatherND com.microsoft:GatherBlockQuantized com.microsoft:GatherND", picking=(1,))
describe("ScatterElements ScatterND", picking=(1,))
without("gradient", "what it picks depends on values", "Compress ReverseSequence Unique com.microsoft:Unique")
without("gradient", INTEGER, "com.microsoft:GatherBlockQuantized")
without("gradient", TWIN, "com.microsoft:GatherND com.microsoft:TorchEmbedding")


@traces("Gather com.microsoft:TorchEmbedding")
def gather(op: TraceNode) -> None:
    """Ids are gathered; each picked position keeps its own id."""
    _gather(op, op.axis(0), op.const(1), op.shape(1))


@gradient("Gather")
def gather_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each piece to the position it was taken from."""
    axis, table, indices = op.axis(0), op.x(0), op.x(1)
    before, after = table.shape[:axis], table.shape[axis + 1 :]
    count = indices.size
    pieces = dy.reshape((prod(before), count, prod(after)))
    if op.node.input[1] in op.tape.constants:
        places = op.tape.constants[indices.name].ravel().astype(np.int64) % table.shape[axis]
        return put_back(pieces, 1, places, table.shape[axis]).reshape(table.shape)
    wanted = indices.cast(INT64).reshape((1, count, 1)).expand(pieces.shape)
    zeros = pieces.like(np.zeros((1, 1, 1))).expand((prod(before), table.shape[axis], prod(after)))
    return zeros.scatter_add(wanted, pieces, 1).reshape(table.shape)


@traces("GatherND com.microsoft:GatherND")
def gather_nd(op: TraceNode) -> None:
    """A Gather where each index is one number along the first axis; else the axes behind the picked ones keep ids."""
    *picked, numbers = op.shape(1)
    batch = op.attr("batch_dims", 0)
    if numbers == 1 and not batch:
        index = op.const(1)
        _gather(op, 0, None if index is None else index[..., 0], tuple(picked))
        return
    whole = " ".join(op.names()[batch + numbers :])
    shared, at, to = _axes("b", batch), _axes("z", numbers), _axes("u", len(picked) - batch)
    data = op.pin_axes(op.x(0), range(batch, batch + numbers), "OP205", AT_RUN_TIME)
    op.align(f"{shared} {at} {whole}, {shared} {to} k -> {shared} {to} {whole}", [data, _pinned(op, 1)])


def _axes(letter: str, count: int) -> str:
    """Return a spec of axes of their own."""
    return " ".join(f"{letter}{i}" for i in range(count))


def _pinned(op: TraceNode, i: int) -> Value:
    """Return the indices at input ``i``, pinned on all axes."""
    return op.pin_axes(op.x(i), range(len(op.shape(i))), "OP205", AT_RUN_TIME)


def _gather(op: TraceNode, axis: int, index: Ids | None, picked: Shape, table: Value | None = None) -> None:
    """Pick positions of an axis by an index of some shape, None where it is only known at run time."""
    value = op.x(0) if table is None else table
    if index is None or (value.on(axis) is not None and op.varies(1).any()):
        value = op.pin_axes(value, [axis], "OP205", AT_RUN_TIME)
        flat = np.zeros(bounded(prod(picked)), dtype=np.int64)
    else:
        flat = index.ravel().astype(np.int64) % value.shape[axis]
    value = take(value, axis, flat)
    if len(picked) == 1:
        op.give(op.piece(value, axis))
    else:
        op.give(op.reshape(op.piece(value, axis), op.out_shape()))


@traces("com.microsoft:GatherBlockQuantized")
def gather_blocks(op: TraceNode) -> None:
    """Rows are looked up, their numbers in blocks of a few bits, each with its scale: whole blocks leave.

    Zero points may be packed, those of several blocks in a byte: then these blocks leave together.
    """
    (rows, columns), (_, blocks) = op.shape(0), op.shape(2)
    size, bits = op.attr("block_size", 128), op.attr("bits", 4)
    points = op.shape(3)[-1] if op.has(3) else blocks
    together = blocks // points
    last = op.attr("quantize_axis", 1) % 2 == 1 and op.attr("gather_axis", 0) % 2 == 0
    whole = columns * 8 in (blocks * size * bits, blocks * size * 8) and blocks == together * points
    if not last or not whole or op.shape(2)[0] != rows:
        op.give_up("OP211", "its blocks don't come out even, or aren't along the rows")
        return
    made = align(
        op,
        "v (c p w), v (c p), v c -> v (c p k)",
        [op.x(0), op.x(2), op.x(3) if op.has(3) else None],
        {0: (rows, blocks * size)},
        given={"p": together, "w": columns // blocks, "k": size},
    )
    _gather(op, 0, None, op.shape(1), made[0])


@rewrites("Gather GatherND com.microsoft:GatherND")
def gather_index(edit: RewriteNode) -> None:
    """Indices move to the new places of what they pick; indices that depend on an input's size were pinned."""
    index, stacked = edit.param(1, ""), edit.node.op_type == "GatherND"  # there, each index is a list of one
    if index is None or (stacked and (index.shape[-1] > 1 or edit.attr("batch_dims", 0))):
        return
    axis = 0 if stacked else edit.axis(0)
    moved = _moved(edit, axis, index[..., 0] if stacked else index)
    if moved is not None:
        edit.fix_param(1, moved[..., None] if stacked else moved)


def _moved(edit: RewriteNode, axis: int, index: Ids) -> Ids | None:
    """Return the indices of the picked positions that remain; None if nothing was removed."""
    mask = edit.mask(0, axis)
    if mask is None or mask.all():
        return None
    masks = (edit.out_mask(0, axis + d) for d in range(index.ndim))
    remaining = np.ix_(*(np.ones(n, bool) if m is None else m for n, m in zip(index.shape, masks, strict=True)))
    rank = np.cumsum(mask) - 1
    positive = index.astype(np.int64) % len(mask)
    moved: Ids = rank[positive[remaining] if index.ndim else positive].astype(index.dtype)
    return moved


@gradient("GatherND")
def gather_nd_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Add each piece to the position it was taken from."""
    if op.attr("batch_dims", 0):
        raise NotImplementedError("it has batch axes")
    return op.tape.emit("ScatterND", op.x().zeros(), op.x(1), dy, reduction="add")


@traces("GatherElements ScatterElements")
def along_axis(op: TraceNode) -> None:
    """Along the axis positions are picked at run time; along others of equal size, elements meet."""
    axis, rank, values = op.axis(0), len(op.shape(0)), op.inputs
    own = [a for a in range(rank) if a == axis or len({v.shape[a] for v in values}) > 1]
    names = [[f"z{i * rank + a}" if a in own else f"a{a}" for a in range(rank)] for i in range(len(values) + 1)]
    operands, result = (" ".join(axes) for axes in names[:-1]), " ".join(names[-1])
    op.align(f"{', '.join(operands)} -> {result}", [op.pin_axes(v, own, "OP205", AT_RUN_TIME) for v in values])


gradient("GatherElements")(lambda op, dy: op.x().zeros().scatter_add(op.x(1), dy, op.axis(0)))


@traces("ScatterND")
def scatter_nd(op: TraceNode) -> None:
    """Where the indices are a grid, such as those of ``x[:, :2] = y``, the updates meet the positions they replace.

    Otherwise positions of the first axes are picked at run time; on the axes behind them, data and updates meet.
    """
    numbers, placed = op.shape(1)[-1], len(op.shape(1)) - 1
    index = op.const(1)
    grid = None if index is None or op.varies(1).any() else _grid(index, op.shape(0))
    if grid is not None:
        block = op.x(0)
        for axis, places in enumerate(grid):
            if len(places) != block.shape[axis] or not np.array_equal(places, np.arange(len(places))):
                block = op.piece(take(block, axis, places), axis)
        align(op, "*s, *s -> *s", [block, op.x(2)], {0: block.shape}, given={})
        op.give(op.x(0))
        return
    data = op.pin_axes(op.x(0), range(numbers), "OP205", AT_RUN_TIME)
    updates = op.pin_axes(op.x(2), range(placed), "OP205", AT_RUN_TIME)
    _pinned(op, 1)
    whole = " ".join(op.names()[numbers:])
    op.align(
        f"{_axes('z', numbers)} {whole}, {_axes('u', placed)} {whole} -> {_axes('y', numbers)} {whole}", [data, updates]
    )


def _grid(index: Ids, shape: Shape) -> list[Ids] | None:
    """Return the positions along each of the first axes of which the indices of a ScatterND are all combinations.

    None if they aren't such a grid.
    """
    *sizes, numbers = index.shape
    if len(sizes) != numbers or not all(sizes):
        return None
    lines = [np.moveaxis(index[..., a], a, 0).reshape(n, -1)[:, 0].astype(np.int64) for a, n in enumerate(sizes)]
    if not np.array_equal(_combined(lines), index):
        return None
    return [line % shape[a] for a, line in enumerate(lines)]


def _combined(lines: list[Ids]) -> Ids:
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)


@rewrites("ScatterND")
def scatter_index(edit: RewriteNode) -> None:
    """The positions of a grid that remain, at their new places."""
    index, shape = edit.const(1), edit.shape(0)
    grid = None if index is None else _grid(index, shape)
    if index is None or grid is None:
        return
    lines = []
    for axis, places in enumerate(grid):
        mask = edit.mask(0, axis)
        lines.append(places if mask is None else (np.cumsum(mask) - 1)[places[mask[places]]])
    edit.fix_param(1, _combined(lines).astype(index.dtype))


def _picked(op: GradientNode, x: Tensor) -> Tensor:
    """Return the elements of a tensor that a scatter writes to."""
    if op.node.op_type == "ScatterND":
        return x.op("GatherND", op.x(1))
    return x.op("GatherElements", op.x(1), axis=op.axis(0))


def _scattered(op: GradientNode, into: Tensor, updates: Tensor, **attributes: str) -> Tensor:
    """Scatter other updates into another tensor, at the same places."""
    axis = {"axis": op.axis(0)} if op.node.op_type == "ScatterElements" else {}
    return op.tape.emit(op.node.op_type, into, op.x(1), updates, **axis, **attributes)


def _share(op: GradientNode, dy: Tensor) -> Tensor:
    """Divide dy by the number of elements that are equal to a maximum or minimum."""
    own, new = (op.y().equals(op.x())).cast(dy.dtype), _picked(op, op.y()).equals(op.x(2)).cast(dy.dtype)
    return dy / _scattered(op, own, new, reduction="add")


@gradient("ScatterElements ScatterND")
def scattered_into(op: GradientNode, dy: Tensor) -> Tensor:
    """Zero where something was overwritten; an extreme's gradient is divided among equals."""
    reduction = op.attr("reduction", "none")
    if reduction == "add":
        return dy
    if reduction == "mul":
        return dy * _scattered(op, op.x().like(np.ones((1,) * dy.rank)).expand(dy.shape), op.x(2), reduction="mul")
    if reduction == "none":
        return _scattered(op, dy, op.x(2).zeros())
    return op.y().equals(op.x()).where(_share(op, dy), 0.0)


@gradient("ScatterElements ScatterND", of=2)
def scattered(op: GradientNode, dy: Tensor) -> Tensor:
    """Gather from the positions that were written; an extreme's gradient is divided among equals."""
    reduction = op.attr("reduction", "none")
    if reduction in ("none", "add"):
        return _picked(op, dy)
    if reduction == "mul":
        return _picked(op, dy * op.y()) / op.x(2)
    return _picked(op, op.y()).equals(op.x(2)).where(_picked(op, _share(op, dy)), 0.0)


@traces("Compress ReverseSequence Unique com.microsoft:Unique")
def data_dependent(op: TraceNode) -> None:
    """Positions are picked at run time."""
    op.give_up("OP205", AT_RUN_TIME)
