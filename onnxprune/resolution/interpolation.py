"""Linear interpolation along axes: in NumPy, and as nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.model.graph import unique

RESIZE = 11  # opset from which on Resize knows that positions are centers

Axes = Mapping[int, tuple[int, int]]
"""The old and the new size of each axis that changes."""


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


def resize_node(
    tensor: str,
    output: str,
    axes: Axes,
    rank: int,
    taken: set[str],
    constants: dict[str, NDArray[Any]],
) -> NodeProto:
    """Return a Resize; it has scales, so that other axes may have any size.

    Args:
        tensor: what is resized.
        output: the name of the result.
        axes: the old and the new size of each axis that changes.
        rank: the number of all axes.
        taken: names that are in use; filled.
        constants: initializers by name; filled.
    """
    scales = np.ones(rank, dtype=np.float32)
    for axis, (old, new) in axes.items():
        scales[axis] = _scale(old, new)
    roi, by = (unique(f"{tensor}_{part}", taken) for part in ("roi", "scales"))
    constants |= {roi: np.zeros(0, dtype=np.float32), by: scales}
    return helper.make_node(
        "Resize", [tensor, roi, by], [output], name=unique(f"{tensor}/Resize", taken), mode="linear"
    )


def _scale(old: int, new: int) -> np.float32:
    """Return the smallest scale near new / old that gives the new size, however the product is rounded."""
    scale = np.float32(new / old)
    while int(np.floor(np.float32(old) * scale)) < new or int(np.floor(old * float(scale))) < new:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def gathers(
    tensor: str,
    axes: Axes,
    rank: int,
    dtype: Any,
    taken: set[str],
    constants: dict[str, NDArray[Any]],
) -> Iterator[NodeProto]:
    """Yield nodes that resize along each axis where there is no suitable Resize; arguments as for `resize_node`."""
    site = tensor
    for axis, (old, new) in axes.items():
        first, second, share = neighbors(old, new)
        parts = []
        for where, weight in ((first, 1 - share), (second, share)):
            at, by, part, product = (unique(f"{tensor}_{p}", taken) for p in ("at", "by", "part", "product"))
            constants |= {at: where, by: weight.reshape([new if i == axis else 1 for i in range(rank)]).astype(dtype)}
            yield helper.make_node("Gather", [tensor, at], [part], name=unique(f"{part}/Gather", taken), axis=axis)
            yield helper.make_node("Mul", [part, by], [product], name=unique(f"{product}/Mul", taken))
            parts.append(product)
        tensor = unique(f"{site}_resized", taken)
        yield helper.make_node("Add", parts, [tensor], name=unique(f"{tensor}/Add", taken))
