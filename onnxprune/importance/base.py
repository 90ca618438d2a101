"""What a criterion sees of a group, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids
from onnxprune.importance.elements import Elements, Power
from onnxprune.importance.gates import Gates
from onnxprune.importance.readings import Readings
from onnxprune.importance.roles import Role
from onnxprune.trace.groups import Group

Scores: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SlotRows:
    """One weight axis of a group, a row for every unit.

    Weights are seen with the BatchNormalization that follows them folded in (`folding`), so that a
    model scores the same whether or not its exporter folded it.

    Attributes:
        tensor: the initializer.
        axis: its axis.
        role: "weight" of a contraction, "scale" of a normalization, or "vector" for anything else.
        reads: whether a contraction sums over the axis: the weight reads the units, rather than making them.
        units: the group's units, shape (units,).
        labels: the unit of every position of the axis, shape (axis length,).
        elements: where the values come from.
    """

    tensor: str
    axis: int
    role: Role
    reads: bool
    units: Ids
    labels: Ids
    elements: Elements

    @property
    def positions(self) -> Ids:
        """Where every unit is along the axis, ascending, shape (units, positions of one)."""
        nearest = np.searchsorted(self.units, self.labels).clip(max=len(self.units) - 1)
        mine = np.flatnonzero(self.units[nearest] == self.labels)
        by_unit = mine[np.argsort(nearest[mine], kind="stable")]
        return by_unit.reshape(len(self.units), -1)

    @property
    def rows(self) -> NDArray[np.floating[Any]]:
        """All elements at each unit's positions, shape (units, features), in float32 or float64.

        Made anew at every access: hold it no longer than needed.

        Raises:
            ModelError: an element isn't finite (OP126).
        """
        return self.elements.take(self.tensor, self.axis, self.positions)

    def power_sums(self, power: Power) -> Scores:
        """Return each unit's sum of absolute values to a power, shape (units,), making no rows.

        Raises:
            ModelError: an element isn't finite (OP126).
        """
        sums = self.elements.power_sums(self.tensor, self.axis, power)
        return np.asarray(sums[self.positions].sum(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class GroupView:
    """A group as a criterion sees it.

    Attributes:
        group: the group.
        rows: all its weight axes.
        rng: a random generator of the group's own.
        readings: what each layer that reads the group's units read of them on the data given; empty without data.
        gates: how the loss changes with units on the data given; None without data.
    """

    group: Group
    rows: tuple[SlotRows, ...]
    rng: np.random.Generator
    readings: Readings = ()
    gates: Gates | None = None

    def of(self, role: Role) -> Iterator[SlotRows]:
        """Go through the rows with a role."""
        return (rows for rows in self.rows if rows.role == role)

    @property
    def unscored(self) -> Scores:
        """The scores of a group that has not what a criterion reads: NaN, shape (units,)."""
        return np.full(len(self.group.units), np.nan)


Criterion: TypeAlias = Callable[[GroupView], Scores]
"""Gives every unit of a group a raw score, shape (units,): higher is more important, NaN stays."""
