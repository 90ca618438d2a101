"""The ledger of a trace: channel ids, ties between them, pins, and approximations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels.values import Factor, Ids, Shape, Value

_MAX_IDS = 2**25  # some hundred megabytes; large language models have less than a million channels


def bounded(positions: int) -> int:
    """Return a number of positions.

    Raises:
        ValueError: A trace can't hold that many; the sizes of damaged files are impossible.
    """
    if positions > _MAX_IDS:
        raise ValueError(f"{positions} positions are too many to trace")
    return positions


@dataclass(frozen=True, slots=True)
class Pin:
    """Why some channels can't be removed.

    Attributes:
        code: the reason's stable code, OP2xx, as `onnxprune explain` takes it.
        node: the node that pins, or the graph input or output.
        reason: one line of cause.
        hint: what the user can do, or None.
    """

    code: str
    node: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Approximation:
    """Why removing some channels isn't the same as zeroing them.

    Attributes:
        node: name of the node whose statistics change.
        reason: one line of cause.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Contraction:
    """The axes that a node sums products over, as its spec says.

    Its multiply-accumulates are the size of its first output times the sizes of the axes that are summed over.

    Attributes:
        node: index of the node.
        axes: the axes that are summed over, each name once, as (input of the node, axis).
        weights: the inputs that are made of weights only.
    """

    node: int
    axes: tuple[tuple[int, int], ...]
    weights: tuple[int, ...]


@dataclass(slots=True)
class Channels:
    """Allocates channel ids and records facts about them. Ids are arrays; nothing here loops over channels.

    Attributes:
        count: the number of ids.
        left: one end of the ties.
        right: the other end.
        tied_by: for every pair of arrays, the index of the node that tied them.
        pins: ids that can't leave, and why.
        approximations: ids whose removal isn't the same as zeroing, and why.
        rectangles: arrays of which a rectangle must remain, and the node that requires it.
        summed: ids that a contraction sums over: where channels are read, as opposed to made.
        balances: arrays with a row for each group of channels, all of which must lose the same number, and the node
            that requires it.
        ids_by_group: ids along the second axis of a grouped convolution's weight, by initializer: a row for each group,
            of which the weight's value holds the first.
        contractions: the nodes that sum products over channels, by index.
        pieces: id arrays of axes that were cut out of longer ones and must not become empty.
    """

    count: int = 0
    left: list[Ids] = field(default_factory=list)
    right: list[Ids] = field(default_factory=list)
    tied_by: list[int] = field(default_factory=list)
    pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    approximations: list[tuple[Ids, Approximation]] = field(default_factory=list)
    rectangles: list[tuple[Ids, int]] = field(default_factory=list)
    balances: list[tuple[Ids, int]] = field(default_factory=list)
    ids_by_group: dict[str, Ids] = field(default_factory=dict)
    pieces: list[Ids] = field(default_factory=list)
    summed: list[Ids] = field(default_factory=list)
    contractions: dict[int, Contraction] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        """Return ``count`` new ids, shape (count,).

        Raises:
            ValueError: A trace can't hold that many.
        """
        first, self.count = self.count, bounded(self.count + count)
        return np.arange(first, self.count, dtype=np.int64)

    def tie(self, left: Ids, right: Ids, node: int) -> None:
        """Record that corresponding ids of two broadcastable arrays leave together, because of a node."""
        if left is right:
            return
        a, b = (left, right) if left.shape == right.shape else np.broadcast_arrays(left, right)
        self.left.append(a.ravel())
        self.right.append(b.ravel())
        self.tied_by.append(node)

    def pin(self, ids: Ids, pin: Pin) -> None:
        """Record that ids can't leave."""
        self.pins.append((ids.ravel(), pin))

    def approximate(self, ids: Ids, approximation: Approximation) -> None:
        """Record that removing ids isn't the same as zeroing them."""
        self.approximations.append((ids.ravel(), approximation))

    def rectangle(self, ids: Ids, node: int) -> None:
        """Record that the kept part of an array of two or more dimensions must be a rectangle."""
        self.rectangles.append((ids, node))

    def split_by_group(self, initializer: str, ids: Ids, groups: int) -> Ids:
        """Return separate ids for each group of a weight along its second axis, shape (groups, channels)."""
        rest = self.fresh((groups - 1) * len(ids)).reshape(groups - 1, -1)
        self.ids_by_group[initializer] = np.concatenate([ids[None], rest])
        return self.ids_by_group[initializer]

    def edges(self) -> tuple[Ids, Ids, Ids]:
        """Return all ties: two arrays of ids and one of node indices, each of shape (ties,)."""
        nodes = np.repeat(np.array(self.tied_by, dtype=np.int64), [len(a) for a in self.left] if self.left else [])
        return _join(self.left), _join(self.right), nodes

    def solve(self) -> Ids:
        """Return the component of every id, shape (count,), after adding ties until all rectangles hold.

        A rectangle holds when removal depends on the position along one of its axes only. Where it doesn't, the array
        is tied along all axes but the one that leaves the most choices: channel shuffles and grouped normalizations
        drop the same positions of every group.
        """
        while True:
            roots = components(self.count, _join(self.left), _join(self.right))
            pinned = np.zeros(self.count, dtype=bool)
            pinned[roots[_join(ids for ids, _ in self.pins)]] = True
            unresolved = []
            for ids, node in self.rectangles:
                label = roots[ids]
                label[pinned[label]] = -1
                if not any(
                    np.array_equal(np.broadcast_to(_edge(label, d), label.shape), label) for d in range(ids.ndim)
                ):
                    self.tie(ids, _edge(ids, _freest(label)), node)
                    unresolved.append((ids, node))
            if not unresolved:
                return roots


def fresh_value(shape: Shape, channels: Channels) -> Value:
    """Return a tensor with new ids on each of its axes, except axes of a single position."""
    factors = (Factor((axis,), channels.fresh(n)) for axis, n in enumerate(shape) if n > 1)
    return Value(shape, tuple(factors), constant=True)


def _freest(label: Ids) -> int:
    """Return the axis along which the most labels but -1 are apart when all other axes are tied; of equals the longest.

    Args:
        label: the component of each position, -1 where nothing can leave.
    """
    kinds, numbers = np.unique(label, return_inverse=True)
    numbers = numbers.reshape(label.shape)

    def apart(dim: int) -> tuple[int, int]:
        edge = np.broadcast_to(_edge(numbers, dim), numbers.shape)
        found = components(len(kinds), edge.ravel(), numbers.ravel())
        return len(np.unique(found)), label.shape[dim]

    return max(range(label.ndim), key=apart)


def _edge(array: Ids, dim: int) -> Ids:
    """Return the first line of an array along a dimension, ready to broadcast against it."""
    return array[tuple(slice(None) if d == dim else slice(0, 1) for d in range(array.ndim))]


def _join(arrays: Iterable[Ids]) -> Ids:
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def components(size: int, left: Ids, right: Ids) -> Ids:
    """Label the connected components of the graph with edges ``left[i] -- right[i]``.

    Hooking and pointer jumping (Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", 1982): every root
    hooks onto its smallest neighboring root, then all paths are compressed, until no edge joins two roots.

    Args:
        size: number of nodes; edges hold values in ``[0, size)``.
        left: one end of every edge, shape (edges,).
        right: the other end, shape (edges,).

    Returns:
        Shape (size,): for every node the smallest node of its component.
    """
    root = np.arange(size, dtype=np.int64)
    while True:
        a, b = root[left], root[right]
        open_edges = a != b
        if not open_edges.any():
            return root
        left, right, a, b = left[open_edges], right[open_edges], a[open_edges], b[open_edges]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped
