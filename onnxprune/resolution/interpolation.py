"""Linear interpolation along an axis, as a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def neighbors(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the two old positions that each new one lies between, and the share of the second, each of shape (new,).

    Positions are centers of equal parts of the axis (ONNX's "half_pixel"); beyond the border the last one counts.
    """
    centers = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.floor(centers).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), centers - first


def interpolated(array: NDArray[Any], sizes: Mapping[int, int]) -> NDArray[Any]:
    """Return an array with other sizes of some axes, by linear interpolation.

    Args:
        array: real numbers.
        sizes: the new size of each axis that changes.
    """
    result = array.astype(np.float64)
    for axis, size in sizes.items():
        first, second, share = neighbors(array.shape[axis], size)
        matrix = np.zeros((size, array.shape[axis]))
        np.add.at(matrix, (np.arange(size), first), 1 - share)
        np.add.at(matrix, (np.arange(size), second), share)
        result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
    return np.ascontiguousarray(result.astype(array.dtype))
