"""Tensors as the tracer sees them: a shape, channel ids on its axes, and how data movement acts on both.

A *channel id* is an integer for one position of one axis of one weight. An element of a tensor exists in the pruned
model if every id at its position is kept. Axes without ids hold positions (batch, image rows, time steps), which are
never removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Channel ids on one axis of a tensor, or jointly on several.

    Attributes:
        axes: the tensor's axes, one for each dimension of ``ids``.
        ids: the ids; the size of dimension ``i`` is the tensor's size along ``axes[i]``.
    """

    axes: tuple[int, ...]
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor as the tracer sees it.

    Attributes:
        shape: its concretized shape.
        factors: its id arrays, on disjoint sets of axes.
        origin: where the axes without ids come from, if known ("graph input 'x'").
        constant: whether it depends on weights only, so that masking the weights masks it.
    """

    shape: Shape
    factors: tuple[Factor, ...] = ()
    origin: str | None = None
    constant: bool = False

    def on(self, axis: int) -> Factor | None:
        """Return the factor on ``axis``, or None."""
        for factor in self.factors:
            if axis in factor.axes:
                return factor
        return None

    def moved(self, shape: Sequence[int], factors: Iterable[Factor]) -> Value:
        """Return the result of moving this tensor's data."""
        return Value(tuple(shape), tuple(factors), self.origin, self.constant)


def transpose(value: Value, perm: Sequence[int]) -> Value:
    """Permute the axes as ``numpy.transpose`` does."""
    where = {old: new for new, old in enumerate(perm)}
    return value.moved(
        [value.shape[p] for p in perm],
        [Factor(tuple(where[a] for a in f.axes), f.ids) for f in value.factors],
    )


def take(value: Value, axis: int, index: Ids) -> Value:
    """Select positions ``index`` (one-dimensional) along ``axis``."""
    shape = list(value.shape)
    shape[axis] = len(index)
    factors = [
        Factor(f.axes, np.take(f.ids, index, f.axes.index(axis))) if axis in f.axes else f for f in value.factors
    ]
    return value.moved(shape, factors)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The result of `reshape`: the new tensor, and the ids it can't carry.

    Attributes:
        value: the reshaped tensor.
        lost: id arrays that have no place in it, to be pinned, each with the reason.
        single: ids of single positions whose axis vanishes, to be pinned.
        joint: id arrays on several axes that a single axis was split into; the kept part of each must be a rectangle.
    """

    value: Value
    lost: tuple[tuple[Ids, str], ...]
    single: tuple[Ids, ...]
    joint: tuple[Factor, ...]


def reshape(value: Value, shape: Shape, prefer: Literal["heads", "width"] | None = None) -> Reshaped:
    """Reshape a tensor and its id arrays.

    Input and output axes fall into runs with equal products (``(N, C, H, W) -> (N, C*H*W)`` has the runs ``N -> N`` and
    ``C, H, W -> C*H*W``). Within a run an id array is broadcast over all the run's input axes, reshaped to its
    output axes, and reduced to the axes along which it varies.

    If two axes with ids are merged into one, only one set of ids can be carried: in an attention that of the heads,
    which come first, or that of their width; elsewhere the larger.

    Raises:
        ValueError: the shapes have different numbers of elements.
    """
    if prod(value.shape) != prod(shape):
        raise ValueError(f"{list(value.shape)} can't be reshaped to {list(shape)}")
    runs = _runs(value.shape, shape)
    run_of = {axis: i for i, (inputs, _) in enumerate(runs) for axis in inputs}
    taken: dict[int, Factor] = {}
    factors: list[Factor] = []
    lost: list[tuple[Ids, str]] = []
    single: list[Ids] = []
    joint: list[Factor] = []
    for factor in sorted(value.factors, key=lambda f: _preference(f, prefer)):
        factor = _squeeze(factor)
        if not factor.axes:
            single.append(factor.ids)
            continue
        touched = sorted({run_of[a] for a in factor.axes})
        if any(r in taken for r in touched):
            lost.append((factor.ids, "two sets of channels are merged into one axis"))
            continue
        source = [a for r in touched for a in runs[r][0]]
        target = [a for r in touched for a in runs[r][1]]
        if prod(shape[a] for a in target) > _MOST_IDS:  # only damaged models have this many
            lost.append((factor.ids, "channels are merged with too many positions"))
            continue
        taken.update(dict.fromkeys(touched, factor))
        over = spread(factor, source, value.shape)
        moved = compact(Factor(tuple(target), over.reshape([shape[a] for a in target])))
        factors.append(moved)
        if len(moved.axes) > len(factor.axes):
            joint.append(moved)
    return Reshaped(value.moved(shape, factors), tuple(lost), tuple(single), tuple(joint))


_MOST_IDS = 2**27  # one gibibyte


def _preference(factor: Factor, prefer: Literal["heads", "width"] | None) -> int:
    if prefer is None:
        return -factor.ids.size
    return min(factor.axes) if prefer == "heads" else -max(factor.axes)


def compact(factor: Factor) -> Factor:
    """Drop the axes along which the ids don't vary (one axis always remains)."""
    ids, axes = factor.ids, list(factor.axes)
    for dim in reversed(range(len(axes))):
        first = np.take(ids, [0], dim)
        if len(axes) > 1 and np.array_equal(np.broadcast_to(first, ids.shape), ids):
            ids = first.squeeze(dim)
            del axes[dim]
    return Factor(tuple(axes), ids)


def _squeeze(factor: Factor) -> Factor:
    """Drop dimensions of size one; a factor of a single id keeps none."""
    axes = tuple(a for a, n in zip(factor.axes, factor.ids.shape, strict=True) if n > 1)
    return Factor(axes, factor.ids.squeeze())


def spread(factor: Factor, axes: Sequence[int], shape: Shape) -> Ids:
    """Broadcast a factor over more axes, in the order given."""
    order = np.argsort([axes.index(a) for a in factor.axes])
    ids = factor.ids.transpose(order)
    expanded = ids.reshape([shape[a] if a in factor.axes else 1 for a in axes])
    return np.broadcast_to(expanded, [shape[a] for a in axes])


def _runs(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of axes with equal products, ignoring axes of size one."""
    left = [a for a, n in enumerate(before) if n != 1]
    right = [a for a, n in enumerate(after) if n != 1]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        inputs, outputs = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (m := prod(before[a] for a in inputs)) != (n := prod(after[a] for a in outputs)):
            if m < n:
                inputs.append(left[i])
                i += 1
            else:
                outputs.append(right[j])
                j += 1
        runs.append((inputs, outputs))
    return runs
