"""Bundles take the same number from every row of each balance, and everything that can leave does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnxprune.channels.values import Ids
from onnxprune.trace.bundles import Bundle, bundle


def bundled(*balances: Ids, pinned: tuple[int, ...] = (), apart: tuple[int, ...] = ()) -> tuple[list[Bundle], Ids]:
    """Bundle units 0, 1, 2...; those ``apart`` are in other slots than the rest."""
    count = 1 + max(int(b.max()) for b in balances)
    held = np.zeros(count, dtype=bool)
    held[list(pinned)] = True
    footprint = np.zeros(count, dtype=np.uint64)
    footprint[list(apart)] = 1
    found, stuck = bundle(balances, held, footprint)
    return list(found), stuck


def taken(units: Ids, balance: Ids) -> list[int]:
    """Count in a plain loop how many of some units are in each row."""
    return [sum(int(u) in units.tolist() for u in row) for row in balance]


def test_one_of_each_group() -> None:
    balance = np.arange(12).reshape(3, 4)
    found, stuck = bundled(balance)
    assert len(found) == 4
    assert all(taken(b.units, balance) == [1, 1, 1] for b in found)
    assert not len(stuck)


def test_kinds_are_the_rows() -> None:
    """Units of the same row are interchangeable, those of different rows aren't."""
    found, _ = bundled(np.arange(12).reshape(3, 4))
    kind_of = {int(u): int(k) for b in found for u, k in zip(b.units, b.kinds, strict=True)}
    assert all((kind_of[u] == kind_of[v]) == (u // 4 == v // 4) for u in range(12) for v in range(12))


@pytest.mark.parametrize("groups,width", [(2, 4), (3, 4), (4, 4), (4, 17), (8, 9)])
def test_shuffle(groups: int, width: int) -> None:
    """Before a shuffle the groups are of one convolution, behind it of the next: one of each on both sides.

    Every unit leaves in some bundle, even where the groups' size is no multiple of their number (Birkhoff's theorem).
    """
    before = np.arange(groups * width).reshape(groups, width)
    behind = before.T.reshape(groups, width)
    found, stuck = bundled(before, behind)
    assert not len(stuck)
    assert sorted(np.concatenate([b.units for b in found]).tolist()) == list(range(groups * width))
    assert len(found) == width
    for b in found:
        assert taken(b.units, before) == taken(b.units, behind) == [1] * groups


def test_one_set_for_all_readers() -> None:
    """Several convolutions read a residual sum: the same rows in another order are one balance."""
    balance = np.arange(8).reshape(2, 4)
    found, _ = bundled(balance, balance[:, ::-1].copy(), balance)
    assert len(found) == 4


def test_other_groupings_of_the_same_units() -> None:
    """Twelve channels in two groups and in three: three of one are two of the other."""
    two, three = np.arange(12).reshape(2, 6), np.arange(12).reshape(3, 4)
    found, stuck = bundled(two, three)
    assert not len(stuck)
    for b in found:
        assert len(set(taken(b.units, two))) == len(set(taken(b.units, three))) == 1


def test_pinned_units_stay_and_so_do_those_without_partners() -> None:
    balance = np.arange(8).reshape(2, 4)
    found, stuck = bundled(balance, pinned=(0, 1, 2))
    assert [sorted(b.units.tolist()) for b in found] == [[3, 4]]
    assert stuck.tolist() == [5, 6, 7]


def test_a_unit_in_every_row_leaves_alone() -> None:
    found, _ = bundled(np.array([[0, 1], [0, 2]]))
    assert sorted(sorted(b.units.tolist()) for b in found) == [[0], [1, 2]]


def test_alike_leave_together() -> None:
    """If there is a choice, units in the same slots are bundled."""
    found, _ = bundled(np.arange(8).reshape(2, 4), apart=(0, 1, 6, 7))
    assert (
        sorted(sorted(u in (0, 1, 6, 7) for u in b.units.tolist()) for b in found)
        == [[False] * 2] * 2 + [[True] * 2] * 2
    )


@given(st.data())
def test_any_balances(data: st.DataObject) -> None:
    """For random balances: bundles hold each unit once, take the same number of every row, and nothing pinned."""
    count = data.draw(st.sampled_from([8, 12, 16]))
    draw = st.permutations(range(count))
    balances = [
        np.array(data.draw(draw)).reshape(data.draw(st.sampled_from([2, 4])), -1)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    pinned = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    found, stuck = bundled(*balances, pinned=tuple(pinned))
    units = [int(u) for b in found for u in b.units]
    assert len(units) == len(set(units))
    assert set(units) | set(stuck.tolist()) == set(range(count)) - pinned
    for b in found:
        assert all(len(set(taken(b.units, rows))) == 1 for rows in balances)
