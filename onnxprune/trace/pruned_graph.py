"""What remains of a traced model after removal: masks and shapes in closed form, without rewriting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Factor, Ids, Mask, Shape
from onnxprune.errors import RewriteError
from onnxprune.trace.graph import ChannelGraph


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block, x + f(x).

    Attributes:
        name: the node that sums.
        skip: the tensor x.
        branch: the tensor f(x).
        output: the sum.
        nodes: the nodes that only f(x) needs, in order.
        weights: the initializers that only these nodes read.
    """

    name: str
    skip: str
    branch: str
    output: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResizedState:
    """A state whose channels may have left.

    Attributes:
        input: the input that takes it.
        output: the output that returns it.
        before: its shape in the original: a size, a symbol or "?" for each axis.
        after: its shape in the pruned model.
        kept: the positions that remain, by axis, for the axes that shrank.
    """

    input: str
    output: str
    before: tuple[int | str, ...]
    after: tuple[int | str, ...]
    kept: Mapping[int, tuple[int, ...]]


class PrunedGraph:
    """A traced model without some of its residual blocks and units.

    Attributes:
        graph: the model, traced without the blocks.
        removed: for every unit of ``graph`` whether it was removed, shape (units,).
        original: the whole model, traced; ``graph`` itself if no block was removed.
        blocks: the residual blocks that were removed from the original.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        removed: Mask | None = None,
        *,
        original: ChannelGraph | None = None,
        blocks: tuple[Block, ...] = (),
    ) -> None:
        """Set what was removed: no units by default."""
        self.graph = graph
        self.removed = np.zeros(graph.unit_count, dtype=bool) if removed is None else removed
        self.original = graph if original is None else original
        self.blocks = blocks
        self._masks: dict[int, tuple[Mask, ...]] = {}
        self._shapes: dict[str, Shape] = {}

    def without(self, removed: Mask) -> PrunedGraph:
        """Return the model with the same blocks removed, and other units."""
        return PrunedGraph(self.graph, removed, original=self.original, blocks=self.blocks)

    @property
    def unmade(self) -> frozenset[str]:
        """The tensors that ONNX Runtime can't compute with all blocks or without those that were removed."""
        return self.graph.unmade | self.original.unmade

    def mask(self, tensor: str, axis: int) -> Mask | None:
        """Return which positions of a tensor's axis remain, or None if the axis holds no channels."""
        value = self.graph.values.get(tensor)
        factor = value.on(axis) if value is not None else None
        return None if factor is None else self._of(factor)[factor.axes.index(axis)]

    def shape(self, tensor: str) -> Shape:
        """Return a tensor's shape after the removal.

        Raises:
            KeyError: the tensor's shape is not known.
        """
        if tensor not in self._shapes:
            self._shapes[tensor] = self._shape(tensor)
        return self._shapes[tensor]

    def _shape(self, tensor: str) -> Shape:
        value = self.graph.values.get(tensor)
        if value is None:
            return self.graph.shapes.shapes[tensor]
        shape = list(value.shape)
        for factor in value.factors:
            for axis, mask in zip(factor.axes, self._of(factor), strict=True):
                shape[axis] = int(np.count_nonzero(mask))
        return tuple(shape)

    def positions(self) -> dict[str, dict[int, Ids]]:
        """Return the positions that leave each initializer, by name and axis."""
        removed: dict[str, dict[int, Ids]] = {}
        for (name, axis), ids in self.graph.slots.items():
            positions = np.flatnonzero(self.removed[self.graph.unit_of[ids]])
            if len(positions):
                removed.setdefault(name, {})[axis] = positions
        return removed

    def states(self) -> tuple[ResizedState, ...]:
        """Return the states with their shapes before and after.

        Raises:
            RewriteError: of a state's input and output not the same remains (OP401).
        """
        declared = {entry.name: entry.type.tensor_type.shape.dim for entry in self.graph.proto.graph.input}
        found = []
        for state in self.graph.states:
            dims = declared[state.input]
            size = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?" for d in dims]
            kept = {}
            for axis in range(len(size)):
                ends = [self.mask(name, axis) for name in (state.input, state.output)]
                gone = [[] if m is None else np.flatnonzero(~m).tolist() for m in ends]
                if gone[0] != gone[1]:
                    cause = f'the state "{state.input}" would not fit its output "{state.output}" on axis {axis}'
                    raise RewriteError("OP401", cause, hint="this is a bug of onnxprune: please report it")
                if gone[0] and ends[0] is not None:
                    kept[axis] = tuple(np.flatnonzero(ends[0]).tolist())
            after = tuple(len(kept[a]) if a in kept else n for a, n in enumerate(size))
            found.append(ResizedState(state.input, state.output, tuple(size), after, kept))
        return tuple(found)

    def cut(self, tensor: str, array: NDArray[Any]) -> NDArray[Any]:
        """Return what remains of a tensor's value; axes of other sizes than the traced ones stay as they are."""
        for axis in range(array.ndim):
            mask = self.mask(tensor, axis)
            if mask is not None and len(mask) == array.shape[axis] and not mask.all():
                array = np.compress(mask, array, axis)
        return array

    def blanked(self, tensor: str, array: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor's value with zeros in place of what was removed."""
        array = array.copy()
        for axis in range(array.ndim):
            mask = self.mask(tensor, axis)
            if mask is not None:
                array[(slice(None),) * axis + (~mask,)] = 0
        return array

    def _of(self, factor: Factor) -> tuple[Mask, ...]:
        """Return the mask along each dimension of a factor, cached by the identity of its id array."""
        key = id(factor.ids)
        if key not in self._masks:
            self._masks[key] = masks(~self.removed[self.graph.unit_of[factor.ids]])
        return self._masks[key]


def masks(keep: Mask) -> tuple[Mask, ...]:
    """Return which positions remain along each dimension of an id array, given which ids do.

    Raises:
        RewriteError: the remaining part isn't a rectangle (OP401).
    """
    if keep.ndim == 1:
        return (keep,)
    dims = range(keep.ndim)
    along = tuple(np.asarray(keep.any(axis=tuple(e for e in dims if e != d))) for d in dims)
    if not np.array_equal(keep, reduce(np.logical_and.outer, along)):
        cause = "the remaining part of a reshaped axis isn't a rectangle"
        raise RewriteError("OP401", cause, hint="this is a bug of onnxprune: please report it")
    return along
