"""Operators that join, cut, pad and repeat an axis."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.ledger import bounded
from onnxprune.channels.values import Factor, Ids, Value, compact, take
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import INTEGER, TWIN, describe, gradient, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.node import Node
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

AT_RUN_TIME = "what is picked is only known at run time"
_JOINED = "is joined with positions"

describe("Pad Split com.microsoft:Pad", sizing=(1,))
describe("Slice", sizing=(1, 2, 4))
describe("Concat", alike="sum")
describe("Slice Split", alike="mean")
without("gradient", INTEGER, "com.microsoft:QLinearConcat")
without("gradient", TWIN, "com.microsoft:Pad")


@traces("Concat com.microsoft:QLinearConcat")
def concat(op: TraceNode) -> None:
    """Ids are joined on the axis; on the other axes the inputs meet."""
    quantized = op.node.op_type == "QLinearConcat"  # scale and zero point of the result, then three inputs per operand
    values = [op.x(i) for i in range(2, len(op.node.input), 3)] if quantized else op.inputs
    join(op, values, op.axis(0, rank=len(op.out_shape())))


@gradient("Concat", of=None)
def concat_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Cut the piece out."""
    axis = op.axis(0)
    sizes = [x.shape[axis] for x in op.inputs]
    start = sum(sizes[: op.index])
    return dy.slice([axis], [start], [start + sizes[op.index]])


def join(op: TraceNode, values: list[Value], axis: int) -> None:
    """Set the output to the concatenation of values."""
    values = _alike([op.piece(v, axis) for v in values], axis, op)
    joined = _join(op, values, axis)
    names = op.names(len(op.out_shape()))
    operands = [" ".join(f"z{i}" if a == axis else n for a, n in enumerate(names)) for i in range(len(values) + 1)]
    op.align(
        f"{', '.join(operands[:-1])} -> {operands[-1]}",
        [v.moved(v.shape, [f for f in v.factors if axis not in f.axes]) for v in values],
    )
    rest = op.outputs[0]
    op.give(rest.moved(rest.shape, [*rest.factors, *joined]))


def _alike(values: list[Value], axis: int, op: TraceNode) -> list[Value]:
    """Tie ids that are on several axes along this one, if a part has no ids there: heads can still leave.

    This occurs where only a part of each head's width is rotated.
    """
    if all(v.on(axis) for v in values):
        return values
    joint = [(factor := v.on(axis)) is not None and len(factor.axes) > 1 for v in values]
    return [op.pin_axes(v, [axis], "OP206", _JOINED) if j else v for v, j in zip(values, joint, strict=True)]


def _join(op: TraceNode, values: list[Value], axis: int) -> list[Factor]:
    """Concatenate the ids on an axis; positions without ids get new ids that can't leave."""
    factors = [v.on(axis) for v in values]
    if not any(factors):
        return []
    axes = sorted({a for f in factors if f for a in f.axes})
    parts = []
    for value, factor in zip(values, factors, strict=True):
        shape = [value.shape[a] for a in axes]
        if factor is None:
            factor = Factor((axis,), op.channels.fresh(value.shape[axis]))
            origin = f"meets {value.origin}" if value.origin else _JOINED
            op.pin(factor.ids, "OP201" if value.origin else "OP206", origin)
        order = sorted(range(len(factor.axes)), key=lambda d, f=factor: f.axes[d])  # type: ignore[misc]
        ids = factor.ids.transpose(order)
        ids = ids.reshape([n if a in factor.axes else 1 for a, n in zip(axes, shape, strict=True)])
        parts.append(np.broadcast_to(ids, shape))
    joined = compact(Factor(tuple(axes), np.concatenate(parts, axes.index(axis))))
    if len(joined.axes) > 1:
        op.channels.rectangle(joined.ids, op.index)
    return [joined]


@traces("Split")
def split(op: TraceNode) -> None:
    """Each output has its piece of the ids."""
    value, axis, start = op.x(0), op.axis(0), 0
    for i, name in enumerate(op.node.output):
        if name and value.on(axis) is None:  # no channels; its size may be anything
            op.give(value.moved(op.out_shape(i), value.factors), i)
        elif name:
            size = op.out_shape(i)[axis]
            op.give(op.piece(take(value, axis, np.arange(start, start + size)), axis), i)
            start += size


@rewrites("Split")
def split_sizes(edit: RewriteNode) -> None:
    """The remaining size of each piece, equal or not."""
    axis = edit.axis(0)
    sizes = [edit.new_out_shape(i)[axis] for i in range(len(edit.node.output))]
    edit.set_param(1, "split", np.array(sizes, dtype=np.int64), since=13)
    edit.remove_attr("num_outputs")


@gradient("Split")
def split_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Concatenate the pieces."""
    pieces = [op.dy(i) for i in range(len(op.node.output))]
    return op.tape.emit("Concat", *pieces, axis=op.axis(0))


@traces("Slice")
def slice_(op: TraceNode) -> None:
    """Ids are sliced; where every n-th position is taken, none can leave."""
    value = op.x(0)
    for axis, index in _slices(op, value).items():
        if index is None:
            value = op.pin_axes(value, [axis], "OP205", AT_RUN_TIME)
            continue
        if len(index) > 1 and abs(int(index[1] - index[0])) > 1:
            value = op.pin_axes(value, [axis], "OP204", "it takes every n-th position of the axis")
        value = op.piece(take(value, axis, index), axis)
    op.give(value.moved(op.out_shape(), value.factors))


def _slices(op: TraceNode, value: Value) -> dict[int, Ids | None]:
    """Return the positions that a Slice picks of each axis it names; None where they aren't known."""
    starts, ends = op.param(1, "starts"), op.param(2, "ends")
    axes, steps = op.param(3, "axes"), op.param(4, "steps")
    rank = len(value.shape)
    if axes is None:
        axes = np.arange(rank if starts is None else len(starts))
    picked: dict[int, Ids | None] = {}
    for i, a in enumerate(int(a) % rank for a in axes):
        if value.on(a) is None:  # no channels; its size may be anything
            continue
        unknown = starts is None or ends is None or (op.has(4) and steps is None)
        if unknown or (op.has(1) and (op.varies(1) | op.varies(2))[i]):
            picked[a] = None
        else:
            assert starts is not None and ends is not None
            step = 1 if steps is None else int(steps[i])
            picked[a] = _range(int(starts[i]), int(ends[i]), step, value.shape[a])
    return picked


def _range(start: int, end: int, step: int, size: int) -> Ids:
    """Return the positions of ``start:end:step`` on an axis, bounds clamped as the standard says."""
    low = -1 if step < 0 else 0
    high = size - 1 if step < 0 else size
    start = min(max(start + size if start < 0 else start, low if step > 0 else 0), high)
    end = min(max(end + size if end < 0 else end, low), size)
    return np.arange(start, end, step, dtype=np.int64)


@rewrites("Slice")
def slice_bounds(edit: RewriteNode) -> None:
    """Bounds move to the new places of the first and last remaining positions."""
    starts, ends = edit.param(1, "starts"), edit.param(2, "ends")
    axes, steps = edit.param(3, "axes"), edit.param(4, "steps")
    if starts is None or ends is None:
        return
    new_starts, new_ends = starts.copy(), ends.copy()
    shape = edit.shape(0)
    for i in range(len(starts)):
        axis = (i if axes is None else int(axes[i])) % len(shape)
        mask = edit.mask(0, axis)
        if mask is None or mask.all():
            continue
        step = 1 if steps is None else int(steps[i])
        picked = _range(int(starts[i]), int(ends[i]), step, shape[axis])
        rank = np.cumsum(mask) - 1
        kept = rank[picked[mask[picked]]]
        if not len(kept):  # of damaged files: it picks nothing
            new_starts[i] = new_ends[i] = 0
            continue
        new_starts[i] = kept[0]
        last = kept[-1] + np.sign(step)
        new_ends[i] = last if last >= 0 else np.iinfo(np.int32).min
    edit.set_param(1, "starts", new_starts)
    edit.set_param(2, "ends", new_ends)


@gradient("Slice")
def slice_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Pad the piece with zeros; where steps leave gaps, add each element to its position."""
    shape = op.x().shape
    starts, ends, axes, steps = (None if v is None else v.tolist() for v in map(op.const, range(1, 5)))
    assert starts is not None and ends is not None
    before = [0] * len(shape)
    for i, axis in enumerate(axes or range(len(starts))):
        axis, step = axis % len(shape), 1 if steps is None else steps[i]
        places = _range(starts[i], ends[i], step, shape[axis])
        if step != 1:
            dy = put_back(dy, axis, places, shape[axis])
        elif len(places):
            before[axis] = int(places[0])
    return dy.pad(before, [n - b - m for n, b, m in zip(shape, before, dy.shape, strict=True)])


def put_back(dy: Tensor, axis: int, places: np.ndarray, size: int) -> Tensor:
    """Add positions along an axis to zeros of another size, at given places."""
    shape = (*dy.shape[:axis], size, *dy.shape[axis + 1 :])
    column = places.astype(np.int64).reshape([-1 if a == axis else 1 for a in range(dy.rank)])
    indices = dy.tape.constant(column).expand(dy.shape)
    return dy.like(np.zeros((1,) * dy.rank)).expand(shape).scatter_add(indices, dy, axis)


@traces("Pad com.microsoft:Pad")
def pad(op: TraceNode) -> None:
    """Padding on an axis of channels adds channels."""
    value, rank = op.x(0), len(op.shape(0))
    pads, before = _pads(op, rank), op.shape(0)
    grown = [a for a in range(rank) if op.out_shape()[a] != before[a]]
    for axis in grown:
        factor = value.on(axis)
        if factor is None:
            continue
        constant = op.attr("mode", "constant") == "constant"
        if pads is None or not constant or len(factor.axes) > 1 or min(pads[:, axis]) < 0:
            value = op.pin_axes(value, [axis], "OP204", "it repeats or cuts positions of this axis")
        else:
            # Channels of the padding are like any others, and may leave with those they are added to.
            front, back = (op.channels.fresh(int(n)) for n in pads[:, axis])
            ids = np.concatenate([front, factor.ids, back])
            value = value.moved(value.shape, [Factor((axis,), ids) if f is factor else f for f in value.factors])
    op.give(value.moved(op.out_shape(), value.factors))


def _pads(op: Node, rank: int) -> Ids | None:
    """Return the padding before and after every axis, shape (2, rank)."""
    pads = op.param(1, "pads")
    if pads is None:
        return None
    axes = op.const(3)
    full = np.zeros((2, rank), dtype=np.int64)
    full[:, range(rank) if axes is None else [int(a) % rank for a in axes]] = pads.reshape(2, -1)
    return full


@rewrites("Pad com.microsoft:Pad")
def pad_amounts(edit: RewriteNode) -> None:
    """The remaining amount of padding."""
    shape = edit.shape(0)
    pads, amounts, axes = _pads(edit, len(shape)), edit.param(1, "pads"), edit.const(3)
    if pads is None or amounts is None:
        return
    for axis in range(len(shape)):
        mask = edit.out_mask(0, axis)
        if mask is not None:
            pads[0, axis] = mask[: pads[0, axis]].sum()
            pads[1, axis] = mask[len(mask) - pads[1, axis] :].sum()
    order = range(len(shape)) if axes is None else [int(a) % len(shape) for a in axes]
    edit.set_param(1, "pads", pads[:, order].ravel().astype(amounts.dtype))


@gradient("Pad")
def pad_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Cut the padding off; where it repeats content, add it to the positions it repeats."""
    shape, mode = op.x().shape, op.attr("mode", "constant")
    pads = _pads(op, len(shape))
    assert pads is not None
    if mode == "constant":
        starts, ends = np.maximum(pads[0], 0), np.array(dy.shape) - np.maximum(pads[1], 0)
        return dy.slice(range(dy.rank), starts.tolist(), ends.tolist()).pad(*np.maximum(-pads, 0).tolist())
    for axis, (before, after) in enumerate(pads.T.tolist()):
        if before or after:
            places = np.pad(np.arange(shape[axis]), (before, after), mode=mode)
            dy = put_back(dy, axis, places, shape[axis])
    return dy


@traces("Tile")
def tile(op: TraceNode) -> None:
    """Ids are tiled."""
    value, repeats = op.x(0), op.const(1)
    if repeats is None:
        value = op.pin_axes(value, range(len(value.shape)), "OP205", AT_RUN_TIME)
        repeats = np.ones(len(value.shape), dtype=np.int64)
    for axis, count in enumerate(repeats.ravel()):
        if count != 1 and value.shape[axis] > 1 and value.on(axis) is not None:
            size = value.shape[axis]
            value = take(value, axis, np.arange(bounded(size * int(count))) % size)
    op.give(value.moved(op.out_shape(), value.factors))


@gradient("Tile")
def tile_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Sum over the copies."""
    shape = op.x().shape
    apart = [size for n, m in zip(dy.shape, shape, strict=True) for size in (n // m, m)]
    return dy.reshape(apart).sum(range(0, 2 * len(shape), 2)).reshape(shape)
