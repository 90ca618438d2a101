"""Read initializers for scoring, in one pass over each and with little memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids
from onnxprune.errors import ModelError
from onnxprune.importance.folding import Factors, folded_scales
from onnxprune.model.tensors import Weights, by_group
from onnxprune.trace.graph import ChannelGraph

Array: TypeAlias = NDArray[Any]
Power: TypeAlias = Literal[1, 2]

# Elements processed at a time: few enough to stay in a processor's cache.
_BLOCK = 1 << 18

# If even the largest sum is smaller, terms of the others may have underflowed in float32.
_SMALL = 1e-25

_POWERS = {1: np.abs, 2: np.square}


class WeightView:
    """The initializers of a traced model, with following BatchNormalizations folded in."""

    def __init__(self, graph: ChannelGraph) -> None:
        """Take a traced model; weights are read when they are needed."""
        self._graph = graph
        self._weights = Weights(graph.proto)
        self._sums: dict[tuple[str, Power], list[NDArray[np.float64]]] = {}

    def take(self, tensor: str, axis: int, positions: Ids) -> NDArray[np.floating[Any]]:
        """Return the elements at positions of shape (units, n) along an axis, shape (units, features)."""
        array, scale, axis = self._seen_along(tensor, axis)
        taken = _take(array, axis, positions.ravel()).astype(_working_type(array), copy=False)
        if scale is not None:
            scale = np.broadcast_to(scale.astype(taken.dtype), array.shape)
            taken = taken * _take(scale, axis, positions.ravel())
        _require_finite(tensor, taken)
        return np.moveaxis(taken, axis, 0).reshape(len(positions), -1)

    def power_sums(self, tensor: str, axis: int, power: Power) -> NDArray[np.float64]:
        """Return the sum of absolute values to a power at every position of an axis, shape (axis length,)."""
        blocks = (tensor, axis) in self._graph.per_group
        key = (f"{tensor} by group" if blocks else tensor, power)
        if key not in self._sums:
            array, scale, _ = self._seen_along(tensor, axis)
            sums = _power_sums(array, scale, power, _working_type(array))
            largest = np.max([s.max(initial=0) for s in sums])
            if not _SMALL < largest < np.inf:  # float32 over- or underflows, or an element isn't finite
                _require_finite(tensor, array)
                sums = _power_sums(array, scale, power, np.float64)
            self._sums[key] = sums
        return self._sums[key][0 if blocks else axis]

    def _seen_along(self, tensor: str, axis: int) -> tuple[Array, Array | None, int]:
        """Return an initializer, its folded scale, and the axis of both that holds the channels of an axis."""
        array, scale = self._weights[tensor], self._scales.get(tensor)
        groups = self._graph.per_group.get((tensor, axis))
        if groups is None:
            return array, scale, axis
        spread = None if scale is None else by_group(np.broadcast_to(scale, array.shape), groups)
        return by_group(array, groups), spread, 0

    @cached_property
    def _scales(self) -> Mapping[str, Factors]:
        return folded_scales(self._graph)


def _working_type(array: Array) -> type[np.floating[Any]]:
    return np.float64 if array.dtype == np.float64 else np.float32


def _take(array: Array, axis: int, positions: Ids) -> Array:
    """Return positions along an axis, without a copy if they are consecutive."""
    if len(positions) and np.array_equal(positions, np.arange(len(positions)) + positions[0]):
        run = slice(int(positions[0]), int(positions[0]) + len(positions))
        return array[(slice(None),) * axis + (run,)]
    return np.take(array, positions, axis)


def _require_finite(tensor: str, array: Array) -> None:
    if not np.isfinite(array).all():
        kinds = [n for n, bad in (("NaN", np.isnan), ("infinity", np.isinf)) if bad(array).any()]
        cause = f"a weight has {' and '.join(kinds)} among its values"
        raise ModelError("OP126", cause, where=f'initializer "{tensor}"')


def _power_sums(
    array: Array, scale: Array | None, power: Power, dtype: type[np.floating[Any]]
) -> list[NDArray[np.float64]]:
    """Return sums of powers over all axes but one, for every axis, in one pass over blocks of the first."""
    first = np.empty(len(array), dtype=np.float64)
    rest = np.zeros(array.shape[1:], dtype=np.float64)
    step = max(1, _BLOCK // max(1, rest.size))
    with np.errstate(over="ignore", invalid="ignore"):
        if scale is not None:
            scale = np.broadcast_to(scale.astype(dtype), array.shape)
        for start in range(0, len(array), step):
            block = array[start : start + step].astype(dtype)
            if scale is not None:
                block *= scale[start : start + step]
            _POWERS[power](block, out=block)
            first[start : start + step] = block.reshape(len(block), -1).sum(axis=1)
            rest += block.sum(axis=0)
        axes = range(rest.ndim)
        return [first, *(rest.sum(axis=tuple(b for b in axes if b != a)) for a in axes)]
