"""The builder of random networks, and the registry of the blocks that it puts together.

A block is a function that appends nodes to a net and returns the tensor it computed, or None where it doesn't fit (too
few channels). Weights are scaled by their fan-in and whatever could blow up is clamped, so that outputs stay of order
one and a wrong channel shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeVar

from hypothesis import strategies as st

from tests.toolbox import Net, Shape

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[["Builder", str], "str | None"])

_RANKS = {"any": (2, 3, 4, 5), "vector": (2,), "sequence": (3,), "square": (4,), "image": (3, 4, 5)}
_LARGEST = 4000


@dataclass
class Builder:
    """A net that grows by blocks.

    Attributes:
        draw: hypothesis' source of choices.
        net: the net.
        live: all tensors that later blocks may read.
        used: those that something reads.
        batch: the size of the batch axis.
        symbolic: whether the model leaves the batch's size open.
        resizable: whether it leaves the images' size open; nothing may rely on it then.
    """

    draw: Callable[[st.SearchStrategy[Any]], Any]
    net: Net
    batch: int
    symbolic: bool
    resizable: bool
    live: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def pick(self, *options: T) -> T:
        """Choose one of several things."""
        chosen: T = self.draw(st.sampled_from(options))
        return chosen

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def order(self, size: int) -> list[int]:
        """Choose an order of the first integers."""
        return [int(i) for i in self.draw(st.permutations(range(size)))]

    def shape(self, x: str) -> Shape:
        return self.net.shape(x)

    def channels(self, x: str) -> int:
        return self.shape(x)[1]

    def image(self, x: str) -> bool:
        return len(self.shape(x)) > 2

    def ones(self, x: str) -> list[int]:
        """Return a size of one for each axis behind that of the channels."""
        return [1] * (len(self.shape(x)) - 2)

    def other(self, x: str, *, same: Sequence[int]) -> str | None:
        """Choose another tensor of x's rank and of its sizes on some axes."""
        shape = self.shape(x)
        fits = [
            y
            for y in self.live
            if y != x and len(self.shape(y)) == len(shape) and all(self.shape(y)[a] == shape[a] for a in same)
        ]
        return self.pick(*fits) if fits else None

    def per_channel(self, x: str, low: float = -1.0, high: float = 1.0) -> str:
        """Add a weight that broadcasts against x with one number for each channel."""
        return self.net.between(low, high, self.channels(x), *self.ones(x))

    def batch_free(self, target: Sequence[int]) -> list[int]:
        """Return a Reshape target that doesn't state the size of the batch where the model leaves it open."""
        return [0 if self.symbolic else target[0], *target[1:]]

    def extend(self, kind: Block, x: str) -> bool:
        """Add a block on a tensor, if it fits; tell whether it did."""
        fits = (
            len(self.shape(x)) in _RANKS[kind.on]
            and self.net.opset >= kind.since
            and not (kind.sized and self.resizable)
        )
        if not fits:
            return False
        count, live, used = len(self.net.nodes), list(self.live), set(self.used)
        y = kind.function(self, x)
        if y is None or prod(self.shape(y)) > _LARGEST:
            del self.net.nodes[count:]
            self.live, self.used = live, used
            return False
        self.used.add(x)
        self.live.append(y)
        return True


@dataclass(frozen=True)
class Block:
    """A way to extend a net.

    Attributes:
        function: appends the nodes.
        on: what it is for: vectors (features only), sequences (one axis of positions), square images (two), images of
            any kind, or anything.
        since: the first opset that has its operators in the form it writes.
        sized: whether it relies on the images' size.
    """

    function: Callable[[Builder, str], str | None]
    on: Literal["any", "vector", "sequence", "square", "image"]
    since: int
    sized: bool


BLOCKS: dict[str, Block] = {}


def block(
    *, on: Literal["any", "vector", "sequence", "square", "image"] = "any", since: int = 1, sized: bool = False
) -> Callable[[Function], Function]:
    """Register a block."""

    def register(function: Function) -> Function:
        BLOCKS[function.__name__] = Block(function, on, since, sized)
        return function

    return register
