"""Bundle units that leave in equal number: a grouped convolution must keep as many channels in every group.

A *balance* is an array of units, a row for each group, all of whose rows must lose the same number. Units with the same
share in all balances and the same footprint are interchangeable: they are of one *kind*. A *bundle* is a small set of
units that can leave by itself. All units are put into bundles here, which only needs counts of kinds; which unit of a
kind leaves first is decided later, by importance (`onnxprune.trace.groups.Group.deal`). So each group of a convolution
drops its own least important channels, and no channel is coupled to the one with the same index elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.ledger import components
from onnxprune.channels.values import Ids, Mask

_EFFORT = 500  # kinds tried for one bundle


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Units that can leave by themselves.

    Attributes:
        units: the units, shape (n,).
        kinds: the kind of each, shape (n,); units of the same kind are interchangeable.
    """

    units: Ids
    kinds: Ids


def bundle(balances: Sequence[Ids], pinned: Mask, footprint: NDArray[np.uint64]) -> tuple[tuple[Bundle, ...], Ids]:
    """Bundle the units that take part in balances.

    Args:
        balances: units, a row for each group, shape (groups, channels) each.
        pinned: for every unit whether it can't leave, shape (units,).
        footprint: for every unit a number that identifies its slots, shape (units,).

    Returns:
        The bundles, and the units that can't leave because no others can leave with them.
    """
    bundles: list[Bundle] = []
    stuck: list[int] = []
    first, rng = 0, np.random.default_rng(0)  # kinds are identified by sums of random numbers, one for each row
    for part in _parts(balances, len(pinned)):
        units = np.unique(np.concatenate([b.ravel() for b in part]))
        shares = np.concatenate([_shares(units, b) for b in part], axis=1)
        number = rng.integers(1, 2**63, size=shares.shape[1], dtype=np.uint64)
        _, kind = np.unique(footprint[units] + shares.astype(np.uint64) @ number, return_inverse=True)
        kind = np.where(pinned[units], -1, kind.ravel())
        members = [units[kind == k].tolist() for k in range(int(kind.max(initial=-1)) + 1)]
        lead = [int(np.argmax(kind == k)) for k in range(len(members))]
        search = _Search(shares[lead], [len(b) for b in part], footprint[units[lead]])
        for profile in search.profiles(np.array([len(m) for m in members], dtype=np.int64)):
            picks = [(members[k].pop(0), first + k) for k, n in enumerate(profile.tolist()) for _ in range(n)]
            bundles.append(Bundle(*np.array(picks, dtype=np.int64).T))
        stuck += [u for rest in members for u in rest]
        first += len(members)
    return tuple(bundles), np.array(sorted(stuck), dtype=np.int64)


def _parts(balances: Sequence[Ids], units: int) -> Iterator[list[Ids]]:
    """Yield the balances that share units together, without duplicates, such as those of a residual sum's readers."""
    distinct = list({(b.shape, np.sort(b).tobytes()): b for b in balances}.values())
    if not distinct:
        return
    left = np.concatenate([b.ravel() for b in distinct])
    right = np.repeat(units + np.arange(len(distinct)), [b.size for b in distinct])
    roots = components(units + len(distinct), left, right)[units:]
    for root in np.unique(roots):
        yield [b for b, r in zip(distinct, roots, strict=True) if r == root]


def _shares(units: Ids, balance: Ids) -> Ids:
    """Count how often every unit is in each row of a balance, shape (units, rows)."""
    shares = np.zeros((len(units), len(balance)), dtype=np.int64)
    np.add.at(shares, (np.searchsorted(units, balance), np.arange(len(balance))[:, None]), 1)
    return shares


class _Search:
    """Search for numbers of units of each kind that can leave together: the same number in every row of a balance.

    A depth-first search that adds a unit to the row with the fewest choices among those that lack one. The first pass
    adds nothing that makes another row lack more, the second anything. Where kinds form a square, rows of one balance
    by rows of another, as around a channel shuffle, the first pass finds the permutations that sum up to it (Birkhoff,
    1946).
    """

    def __init__(self, shares: Ids, rows: Sequence[int], footprint: NDArray[np.uint64]) -> None:
        """Set up kinds with their shares in all rows, shape (kinds, rows of all balances)."""
        self._shares = shares
        self._starts = np.cumsum([0, *rows[:-1]])
        self._rows = np.array(rows)
        self._footprint = footprint
        self._effort = 0
        self._spill = False

    def profiles(self, sizes: Ids) -> Iterator[Ids]:
        """Yield how many of each kind leave together, shape (kinds,), repeatedly, until none is found."""
        if len(sizes) == self._rows.max(initial=0) and (sizes == sizes[:1]).all() and not self._lacking(sizes).any():
            for _ in range(int(sizes[0])):  # common case: a single balance, one unit of each row
                yield np.ones_like(sizes)
            return
        sizes = sizes.copy()
        hopeless = np.zeros(len(sizes), dtype=bool)
        while (sizes > 0).any() and not hopeless[sizes > 0].all():
            seed = int(np.argmax(np.where(hopeless, 0, sizes)))
            taken = np.zeros(len(sizes), dtype=np.int64)
            taken[seed] = 1
            room = 4 * int(self._rows.sum())
            for self._spill in (False, True):
                self._effort = _EFFORT
                if found := self._complete(taken, sizes, seed, room):
                    break
            if not found:
                hopeless[seed] = True
                continue
            times = int(np.min(sizes[taken > 0] // taken[taken > 0]))
            sizes -= times * taken
            for _ in range(times):
                yield taken

    def _lacking(self, taken: Ids) -> Ids:
        """Return how many units each row lacks, compared to the row of its balance that loses most, shape (rows,)."""
        total = taken @ self._shares
        return np.asarray(np.repeat(np.maximum.reduceat(total, self._starts), self._rows) - total)

    def _complete(self, taken: Ids, sizes: Ids, seed: int, room: int) -> bool:
        """Add units until all rows of each balance lose the same number; return whether this succeeded."""
        lacking = self._lacking(taken)
        if not lacking.any():
            return True
        if not room or not self._effort:
            return False
        excess = np.maximum(self._shares - lacking, 0).sum(axis=1)
        fits = (taken < sizes) & ((excess == 0) | self._spill)
        choices = np.where(lacking > 0, (self._shares[fits] > 0).sum(axis=0), len(sizes) + 1)
        usable = np.flatnonzero(fits & (self._shares[:, int(np.argmin(choices))] > 0))
        other = self._footprint[usable] != self._footprint[seed]
        for kind in usable[np.lexsort((taken[usable] - sizes[usable], other, excess[usable]))]:
            self._effort = max(0, self._effort - 1)
            taken[kind] += 1
            if self._complete(taken, sizes, seed, room - 1):
                return True
            taken[kind] -= 1
        return False
