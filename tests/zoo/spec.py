"""What a test has to know of a network: how to build it, what it takes, and which of its axes are dynamic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

Shape = tuple[int, ...]
Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a network.

    Attributes:
        axes: a size, or the name of a dynamic axis.
        below: integers are drawn from 0 up to this; None for standard normal floats.
    """

    axes: tuple[str | int, ...]
    below: int | None = None

    def shape(self, sizes: Sizes) -> Shape:
        """Return the shape, dynamic axes at the sizes given."""
        return tuple(sizes[a] if isinstance(a, str) else a for a in self.axes)

    def draw(self, sizes: Sizes, rng: np.random.Generator) -> NDArray[Any]:
        """Draw an array, dynamic axes at the sizes given."""
        if self.below is None:
            return rng.standard_normal(self.shape(sizes)).astype(np.float32)
        return rng.integers(0, self.below, self.shape(sizes))


@dataclass(frozen=True, slots=True)
class Network:
    """A network and what is expected of it.

    Attributes:
        build: makes the module, with random weights.
        inputs: its inputs, by name, in the order of `forward`.
        sizes: sizes of the dynamic axes at export and in the trace.
        elsewhere: other sizes, at which the pruned model must work as well.
        attention: whether it has an attention, whose heads or whose heads' width may leave.
        baked: the dynamic axes to which an exporter gives the size they had, by exporter: its fault or its doing.
        apart: why the exporters' groups differ, if they do.
        unreached: layers that can't be made smaller, as "operator [weight shape]", and why.
    """

    build: Callable[[], nn.Module]
    inputs: Mapping[str, Input]
    sizes: Sizes = field(default_factory=lambda: {"batch": 2})
    elsewhere: Sizes = field(default_factory=lambda: {"batch": 3})
    attention: bool = False
    baked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apart: str | None = None
    unreached: Mapping[str, str] = field(default_factory=dict)

    def draw(self, sizes: Sizes, seed: int = 0) -> dict[str, NDArray[Any]]:
        """Draw an array for each input."""
        rng = np.random.default_rng(seed)
        return {name: entry.draw(sizes, rng) for name, entry in self.inputs.items()}

    def shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Return the shape of each input."""
        return {name: entry.shape(sizes) for name, entry in self.inputs.items()}

    def other_sizes(self, exporter: str) -> Sizes:
        """Return other sizes at which the model of an exporter runs."""
        baked = self.baked.get(exporter, ())
        return {name: self.sizes[name] if name in baked else size for name, size in self.elsewhere.items()}
