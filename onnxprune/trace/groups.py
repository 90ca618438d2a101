"""Groups: the removable units with the same footprint, the channels of a layer to a user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.ledger import Approximation
from onnxprune.channels.values import Ids


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The removable units with the same footprint: the channels of a layer and of everything coupled to it.

    Attributes:
        index: the group's number in its graph.
        name: the first node that makes the group's channels.
        nodes: all nodes whose weights it slices.
        producers: those of them whose output has the group's channels.
        units: the numbers of its units, in the order of their channels, shape (n,).
        sets: the units that leave together, as indices into ``units``, shape (sets, n): single units, or several that
            must leave in equal number from each group of a convolution.
        kinds: the kind of each, shape (sets, n); units of the same kind are interchangeable.
        width: the largest number of positions that a unit has on one axis.
        widths: the numbers of channels that a set has where it is made (readers may see a channel several times, or
            one for a group of channels), distinct, ascending.
        slots: the weight axes it slices, as (initializer, axis).
        approximations: why removal is more than zeroing; empty for an exact group.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    producers: tuple[str, ...]
    units: Ids
    sets: Ids
    kinds: Ids
    width: int
    widths: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]
    approximations: tuple[Approximation, ...]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The nodes that take statistics over the group's channels."""
        return tuple(dict.fromkeys(a.node for a in self.approximations))

    @property
    def exact(self) -> bool:
        """Whether removing the group's units equals zeroing what the next contraction reads."""
        return not self.approximations

    def deal(self, scores: NDArray[np.float64]) -> Ids:
        """Arrange the units in sets by importance: the least important of each kind leave together, and first.

        Args:
            scores: importance of the units, shape (units,).

        Returns:
            Indices into ``units``, the least important set first, shape (sets, n).
        """
        dealt = self.sets.copy()
        for kind in np.unique(self.kinds):
            places = self.kinds == kind
            own = self.sets[places]
            dealt[places] = own[np.argsort(scores[own], kind="stable")]
        return dealt[np.argsort(scores[dealt].mean(axis=1), kind="stable")]
