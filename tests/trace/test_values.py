"""Movements of id arrays, compared with movements of an array that holds the ids of each element."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from numpy.typing import NDArray

from onnxprune.channels.values import Factor, Shape, Value, compact, reshape, take, transpose

Elements = NDArray[Any]  # of frozensets of ids


def in_full(value: Value) -> Elements:
    """Return the ids at each element."""
    elements = np.empty(value.shape, dtype=object)
    for place in np.ndindex(*value.shape):
        elements[place] = frozenset(int(f.ids[tuple(place[a] for a in f.axes)]) for f in value.factors)
    return elements


@st.composite
def values(draw: st.DrawFn) -> Value:
    """Draw a value with factors on one axis, or jointly on two, with ids that may repeat."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    axes = draw(st.permutations(list(range(len(shape)))))
    factors = []
    start = 0
    for _ in range(draw(st.integers(0, len(shape)))):
        if not axes:
            break
        count = min(len(axes), draw(st.sampled_from([1, 1, 2])))
        on, axes = tuple(axes[:count]), axes[count:]
        sizes = [shape[a] for a in on]
        ids = np.arange(prod(sizes), dtype=np.int64).reshape(sizes)
        if draw(st.booleans()):  # as after a Tile or an Expand
            ids //= 2
        factors.append(Factor(on, ids + start))
        start += 1000
    return Value(shape, tuple(factors))


def factorizations(size: int, most: int = 4) -> Iterator[tuple[int, ...]]:
    """Yield the shapes without ones of a number of elements."""
    if size == 1 or most == 0:
        if size == 1:
            yield ()
        return
    for first in range(2, size + 1):
        if size % first == 0:
            for rest in factorizations(size // first, most - 1):
                yield first, *rest


@given(values(), st.data())
def test_transpose(value: Value, data: st.DataObject) -> None:
    perm = data.draw(st.permutations(range(len(value.shape))))
    moved = transpose(value, perm)
    expected = in_full(value).transpose(perm)
    assert moved.shape == expected.shape
    assert (in_full(moved) == expected).all()


@given(values(), st.data())
def test_take(value: Value, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(value.shape) - 1))
    index = np.array(data.draw(st.lists(st.integers(0, value.shape[axis] - 1), min_size=1, max_size=5)))
    moved = take(value, axis, index)
    expected = in_full(value).take(index, axis)
    assert moved.shape == expected.shape
    assert (in_full(moved) == expected).all()


@given(values(), st.data())
def test_reshape(value: Value, data: st.DataObject) -> None:
    size = prod(value.shape)
    shape: Shape = data.draw(st.sampled_from(sorted(factorizations(size))))
    for _ in range(data.draw(st.integers(0, 2))):  # axes of size one, anywhere
        at = data.draw(st.integers(0, len(shape)))
        shape = (*shape[:at], 1, *shape[at:])
    result = reshape(value, shape)
    pinned = {int(i) for ids in (*(ids for ids, _ in result.lost), *result.single) for i in ids.ravel()}
    expected = in_full(value).reshape(shape)
    moved = in_full(result.value)
    assert result.value.shape == shape
    for place in np.ndindex(*shape):
        assert moved[place] == expected[place] - pinned, place
    stood = {int(i) for f in value.factors for i in f.ids.ravel()}
    assert {int(i) for f in result.value.factors for i in f.ids.ravel()} == stood - pinned
    axes = [a for f in result.value.factors for a in f.axes]
    assert len(axes) == len(set(axes))
    # Ids on more axes than before are reported, because not every subset of them remains a tensor.
    widest = max((len(f.axes) for f in value.factors), default=0)
    for factor in result.value.factors:
        if len(factor.axes) > widest:
            assert any(factor is j for j in result.joint)


@pytest.mark.parametrize(
    ("before", "after", "axes"),
    [
        ((2, 12, 3, 3), (2, 108), (1,)),  # Flatten
        ((2, 12, 3, 3), (2, 3, 4, 3, 3), (1, 2)),  # a channel shuffle's first step
        ((2, 12), (2, 12, 1, 1), (1,)),
        ((1, 12, 1), (12,), (0,)),
        ((2, 12, 3), (24, 3), (0,)),
    ],
)
def test_where_channels_go(before: Shape, after: Shape, axes: tuple[int, ...]) -> None:
    result = reshape(Value(before, (Factor((1,), np.arange(12)),)), after)
    (factor,) = result.value.factors
    assert factor.axes == axes
    assert not result.lost
    assert not result.single
    assert len(result.joint) == (len(axes) > 1)


def test_two_sets_of_channels_do_not_melt() -> None:
    value = Value((4, 6), (Factor((0,), np.arange(4)), Factor((1,), np.arange(10, 16))))
    result = reshape(value, (24,))
    assert len(result.lost) == 1
    assert [f.axes for f in result.value.factors] == [(0,)]


def test_a_reshape_with_more_positions_than_memory_is_not_followed() -> None:
    """The merged axis would need as many ids as it is long."""
    shape = (4, 2**40)
    result = reshape(Value(shape, (Factor((0,), np.arange(4)),)), (2**42,))
    assert not result.value.factors
    assert [ids.tolist() for ids, _ in result.lost] == [[0, 1, 2, 3]]


def test_compact_keeps_what_varies() -> None:
    ids = np.broadcast_to(np.arange(5)[:, None, None], (5, 2, 3))
    factor = compact(Factor((4, 1, 2), ids))
    assert factor.axes == (4,)
    assert factor.ids.tolist() == [0, 1, 2, 3, 4]


@given(values())
def test_reshape_there_and_back(value: Value) -> None:
    flat = reshape(value, (prod(value.shape),))
    assume(not flat.lost)
    back = reshape(flat.value, value.shape)
    pinned = {int(i) for ids in (*flat.single, *back.single) for i in ids.ravel()}
    for place, ids in np.ndenumerate(in_full(value)):
        assert in_full(back.value)[place] == ids - pinned
        break
