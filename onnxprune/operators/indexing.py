"""Operators that pick, join and pad positions of an axis."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.values import Factor, Ids, Shape, Value, compact, take
from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode

_AT_RUN_TIME = "what is picked is only known at run time"
_JOINED = "is joined with positions"


@rule("Concat")
def concat(op: TraceNode) -> None:
    """Ids are joined on the axis; on the other axes the inputs meet."""
    join(op, op.inputs, op.axis(rank=len(op.out_shape())))


def join(op: TraceNode, values: list[Value], axis: int) -> None:
    """Set the output to the concatenation of values."""
    values = _alike([op.piece(v, axis) for v in values], axis, op)
    joined = _join(op, values, axis)
    names = [f"a{chr(97 + i)}" for i in range(len(op.out_shape()))]
    operands = (" ".join(f"z{i}" if a == axis else n for a, n in enumerate(names)) for i in range(len(values)))
    op.align(
        f"{', '.join(operands)} -> {' '.join('z' if a == axis else n for a, n in enumerate(names))}",
        [v.moved(v.shape, [f for f in v.factors if axis not in f.axes]) for v in values],
    )
    rest = op.outputs[0]
    op.give(rest.moved(rest.shape, [*rest.factors, *joined]))


def _alike(values: list[Value], axis: int, op: TraceNode) -> list[Value]:
    """Where a part has no ids on the axis, tie ids that stand on others as well along it: heads can still leave.

    So it is where only a part of each head's width is rotated.
    """
    if all(v.on(axis) for v in values):
        return values
    joint = [(factor := v.on(axis)) is not None and len(factor.axes) > 1 for v in values]
    return [op.pin_axes(v, [axis], "OP206", _JOINED) if j else v for v, j in zip(values, joint, strict=True)]


def _join(op: TraceNode, values: list[Value], axis: int) -> list[Factor]:
    """Concatenate the ids on an axis; positions without ids get ids of their own that can't leave."""
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


@rule("Split")
def split(op: TraceNode) -> None:
    """Each output has its piece of the ids."""
    axis, start = op.axis(0), 0
    for i, name in enumerate(op.node.output):
        if name:
            size = op.out_shape(i)[axis]
            op.give(op.piece(take(op.x(0), axis, np.arange(start, start + size)), axis), i)
            start += size


@rewrites("Split")
def split_sizes(edit: RewriteNode) -> None:
    """The sizes of what remains of each piece, equal or not."""
    axis = edit.axis(0)
    sizes = [edit.new_out_shape(i)[axis] for i in range(len(edit.node.output))]
    edit.set_param(1, "split", np.array(sizes, dtype=np.int64), since=13)
    edit.remove_attr("num_outputs")


@rule("Slice")
def slice_(op: TraceNode) -> None:
    """Ids are sliced; every n-th position can't be picked again once some are gone."""
    value = op.x(0)
    for axis, index in _slices(op, value).items():
        if index is None:
            value = op.pin_axes(value, [axis], "OP205", _AT_RUN_TIME)
            continue
        if len(index) > 1 and abs(int(index[1] - index[0])) > 1:
            value = op.pin_axes(value, [axis], "OP204", "it takes every n-th position of the axis")
        value = op.piece(take(value, axis, index), axis)
    op.give(value.moved(op.out_shape(), value.factors))


def _slices(op: TraceNode, value: Value) -> dict[int, Ids | None]:
    """Return the positions that a Slice picks of each axis it names; None where that isn't known."""
    starts, ends = op.param(1, "starts"), op.param(2, "ends")
    axes, steps = op.param(3, "axes"), op.param(4, "steps")
    rank = len(value.shape)
    if axes is None:
        axes = np.arange(rank if starts is None else len(starts))
    picked: dict[int, Ids | None] = {}
    for i, a in enumerate(int(a) % rank for a in axes):
        unknown = starts is None or ends is None or (op.has(4) and steps is None)
        if unknown or (value.on(a) is not None and op.has(1) and (op.varies(1) | op.varies(2))[i]):
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
    """Bounds move to where the first and last remaining positions went."""
    starts, ends = edit.param(1, "starts"), edit.param(2, "ends")
    axes, steps = edit.param(3, "axes"), edit.param(4, "steps")
    if starts is None or ends is None:
        return
    new_starts, new_ends = starts.copy(), ends.copy()
    shape = edit.old_shape(0)
    for i in range(len(starts)):
        axis = (i if axes is None else int(axes[i])) % len(shape)
        mask = edit.mask(0, axis)
        if mask is None or mask.all():
            continue
        step = 1 if steps is None else int(steps[i])
        picked = _range(int(starts[i]), int(ends[i]), step, shape[axis])
        rank = np.cumsum(mask) - 1
        kept = rank[picked[mask[picked]]]
        new_starts[i] = kept[0]
        last = kept[-1] + np.sign(step)
        new_ends[i] = last if last >= 0 else np.iinfo(np.int32).min
    edit.set_param(1, "starts", new_starts)
    edit.set_param(2, "ends", new_ends)


@rule("Gather")
def gather(op: TraceNode) -> None:
    """Ids are gathered; each picked position stands for itself."""
    _gather(op, op.axis(0), op.const(1), op.shape(1))


@rule("GatherND")
def gather_nd(op: TraceNode) -> None:
    """With indices of one number, which pick along the first axis, a Gather; else positions are picked at run time."""
    *picked, numbers = op.shape(1)
    if numbers > 1 or op.attr("batch_dims", 0):
        data_dependent(op)
    else:
        index = op.const(1)
        _gather(op, 0, None if index is None else index[..., 0], tuple(picked))


def _gather(op: TraceNode, axis: int, index: Ids | None, picked: Shape) -> None:
    """Pick positions of an axis by an index of some shape, None where it is only known at run time."""
    value = op.x(0)
    if index is None or (value.on(axis) is not None and op.varies(1).any()):
        value = op.pin_axes(value, [axis], "OP205", _AT_RUN_TIME)
        flat = np.zeros(int(np.prod(picked)), dtype=np.int64)
    else:
        flat = index.ravel().astype(np.int64) % value.shape[axis]
    value = take(value, axis, flat)
    if len(picked) == 1:
        op.give(op.piece(value, axis))
    else:
        op.give(op.reshape(op.piece(value, axis), op.out_shape()))


@rewrites("Gather")
def gather_index(edit: RewriteNode) -> None:
    """Picked positions move up to where they went."""
    index = edit.param(1, "")
    if index is not None and (moved := _moved(edit, edit.axis(0), index)) is not None:
        edit.set_param(1, "", moved)


@rewrites("GatherND")
def gather_nd_index(edit: RewriteNode) -> None:
    """The same, each index in a list of its own."""
    index = edit.param(1, "")
    if index is not None and index.shape[-1] == 1 and (moved := _moved(edit, 0, index[..., 0])) is not None:
        edit.set_param(1, "", moved[..., None])


def _moved(edit: RewriteNode, axis: int, index: Ids) -> Ids | None:
    """Return the indices of what remains of what was picked; None if nothing has gone."""
    mask = edit.mask(0, axis)
    if mask is None or mask.all():
        return None
    masks = (edit.out_mask(0, axis + d) for d in range(index.ndim))
    remaining = np.ix_(*(np.ones(n, bool) if m is None else m for n, m in zip(index.shape, masks, strict=True)))
    rank = np.cumsum(mask) - 1
    positive = index.astype(np.int64) % len(mask)
    moved: Ids = rank[positive[remaining] if index.ndim else positive].astype(index.dtype)
    return moved


@rule("Pad")
def pad(op: TraceNode) -> None:
    """Padding on an axis of channels makes channels of its own."""
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
            # The padding's channels are channels like any others, and may leave with those they are added to.
            front, back = (op.channels.fresh(int(n)) for n in pads[:, axis])
            ids = np.concatenate([front, factor.ids, back])
            value = value.moved(value.shape, [Factor((axis,), ids) if f is factor else f for f in value.factors])
    op.give(value.moved(op.out_shape(), value.factors))


def _pads(op: TraceNode | RewriteNode, rank: int) -> Ids | None:
    """Return the padding in front of and behind every axis, shape (2, rank)."""
    pads = op.param(1, "pads")
    if pads is None:
        return None
    axes = op.const(3)
    full = np.zeros((2, rank), dtype=np.int64)
    full[:, range(rank) if axes is None else [int(a) % rank for a in axes]] = pads.reshape(2, -1)
    return full


@rewrites("Pad")
def pad_amounts(edit: RewriteNode) -> None:
    """As much padding as remains."""
    shape = edit.old_shape(0)
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


@rule("Tile")
def tile(op: TraceNode) -> None:
    """Ids are tiled."""
    value, repeats = op.x(0), op.const(1)
    if repeats is None:
        value = op.pin_axes(value, range(len(value.shape)), "OP205", _AT_RUN_TIME)
        repeats = np.ones(len(value.shape), dtype=np.int64)
    for axis, count in enumerate(repeats.ravel()):
        if count != 1 and value.shape[axis] > 1:
            value = take(value, axis, np.tile(np.arange(value.shape[axis]), int(count)))
    op.give(value.moved(op.out_shape(), value.factors))


@rule("GatherElements", "ScatterElements")
def along_axis(op: TraceNode) -> None:
    """Along the axis positions are picked at run time; along others, where all are as long, elements meet."""
    axis, rank, values = op.axis(0), len(op.shape(0)), op.inputs
    own = [a for a in range(rank) if a == axis or len({v.shape[a] for v in values}) > 1]
    names = [[f"z{i * rank + a}" if a in own else f"a{a}" for a in range(rank)] for i in range(len(values) + 1)]
    operands, result = (" ".join(axes) for axes in names[:-1]), " ".join(names[-1])
    op.align(f"{', '.join(operands)} -> {result}", [op.pin_axes(v, own, "OP205", _AT_RUN_TIME) for v in values])


@rule(
    "Compress",
    "ReverseSequence",
    "ScatterND",
    "Unique",
)
def data_dependent(op: TraceNode) -> None:
    """Positions are picked at run time."""
    op.give_up("OP205", _AT_RUN_TIME)
