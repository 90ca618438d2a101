"""The criterion interface: `Criterion`, and the `GroupView` that it scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids
from onnxprune.importance.activations import Activations
from onnxprune.importance.gates import GateGradients
from onnxprune.importance.products import Products
from onnxprune.importance.roles import Role
from onnxprune.importance.weight_view import Power, WeightView
from onnxprune.trace.groups import Group

Scores: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SlotRows:
    """One weight axis of a group, a row for every unit.

    A BatchNormalization after a weight is folded into it (`folding`), so that a model scores the same whether or not
    its exporter folded it.

    Attributes:
        tensor: the initializer.
        axis: its axis.
        role: "weight" of a contraction, "scale" of a normalization, or "vector" for anything else.
        reads: whether a contraction sums over the axis: the weight reads the units. Otherwise it produces them.
        units: the group's units, shape (units,).
        labels: the unit of every position of the axis, shape (axis length,).
        weights: the initializers' values.
    """

    tensor: str
    axis: int
    role: Role
    reads: bool
    units: Ids
    labels: Ids
    weights: WeightView

    @property
    def positions(self) -> Ids:
        """The positions of every unit along the axis, ascending, shape (units, positions of one)."""
        nearest = np.searchsorted(self.units, self.labels).clip(max=len(self.units) - 1)
        mine = np.flatnonzero(self.units[nearest] == self.labels)
        by_unit = mine[np.argsort(nearest[mine], kind="stable")]
        return by_unit.reshape(len(self.units), -1)

    @property
    def rows(self) -> NDArray[np.floating[Any]]:
        """All elements at each unit's positions, shape (units, features), in float32 or float64.

        Each access makes a new array.

        Raises:
            ModelError: an element isn't finite (OP126).
        """
        return self.weights.take(self.tensor, self.axis, self.positions)

    def power_sums(self, power: Power) -> Scores:
        """Return each unit's sum of absolute values to a power, shape (units,), without making rows.

        Raises:
            ModelError: an element isn't finite (OP126).
        """
        sums = self.weights.power_sums(self.tensor, self.axis, power)
        return np.asarray(sums[self.positions].sum(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class GroupView:
    """A group as a criterion sees it.

    Attributes:
        group: the group.
        rows: all its weight axes.
        rng: a random generator for this group.
        activations: statistics, on the given inputs, of what each layer reads of the group's units; empty without
            inputs.
        gates: gradients of the loss with respect to the units, on the given inputs; None without inputs.
        products: statistics of products of two activations that sum over the units; None without inputs.
    """

    group: Group
    rows: tuple[SlotRows, ...]
    rng: np.random.Generator
    activations: Activations = ()
    gates: GateGradients | None = None
    products: Products | None = None

    def of(self, role: Role) -> Iterator[SlotRows]:
        """Yield the rows with a role."""
        return (rows for rows in self.rows if rows.role == role)

    @property
    def unscored(self) -> Scores:
        """The scores of a group without what a criterion reads: NaN, shape (units,)."""
        return np.full(len(self.group.units), np.nan)


Criterion: TypeAlias = Callable[[GroupView], Scores]
"""A function that returns the raw scores of a group's units, shape (units,): higher is more important, NaN is kept."""
