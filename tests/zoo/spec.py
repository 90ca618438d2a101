"""What a test has to know of a network: how to build it, what it takes, and which of its axes are dynamic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

Axis = str | int


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a network.

    Attributes:
        axes: a size, or the name of a dynamic axis.
        below: integers are drawn from 0 up to this; None for standard normal floats.
    """

    axes: tuple[Axis, ...]
    below: int | None = None

    def draw(self, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[Any]:
        """Draw an array, dynamic axes at the sizes given."""
        shape = [sizes[a] if isinstance(a, str) else a for a in self.axes]
        if self.below is None:
            return rng.standard_normal(shape).astype(np.float32)
        return rng.integers(0, self.below, shape)


@dataclass(frozen=True, slots=True)
class Network:
    """A network and what is expected of it.

    Attributes:
        build: makes the module, with random weights.
        inputs: its inputs, by name, in the order of `forward`.
        sizes: sizes of the dynamic axes at export and in the trace.
        elsewhere: other sizes, at which the pruned model must work as well.
        groups: what can leave, a line for each group: units, "x" and their width, and how many parameters all have.
        unreached: nodes with weights that can't be made smaller, by the part of their name both exporters write.
        attention: whether it has an attention, whose heads or whose heads' width may leave.
    """

    build: Callable[[], nn.Module]
    inputs: Mapping[str, Input]
    sizes: Mapping[str, int] = field(default_factory=lambda: {"batch": 2})
    elsewhere: Mapping[str, int] = field(default_factory=lambda: {"batch": 3})
    attention: bool = False

    def draw(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray[Any]]:
        """Draw an array for each input."""
        rng = np.random.default_rng(seed)
        return {name: entry.draw(sizes, rng) for name, entry in self.inputs.items()}
