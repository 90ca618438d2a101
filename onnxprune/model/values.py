"""Values that models output: tensors, and sequences, maps and optionals of tensors, numbers or strings."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Path = tuple[Hashable, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, NDArray[Any]]]:
    """Yield the arrays that a value holds, each with its place: positions in sequences and keys of maps.

    Numbers and strings are arrays without axes, and so is None, an optional that is empty.

    Examples:
        >>> list(leaves([{"cat": 0.5}]))
        [((0, 'cat'), array(0.5))]
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, np.asarray(value)


def form(value: Any) -> dict[Path, tuple[int, ...]]:
    """Return the shape of each array that a value holds, by its place."""
    return {path: array.shape for path, array in leaves(value)}


def is_numeric(array: NDArray[Any]) -> bool:
    """Whether an array holds numbers, rather than strings or objects."""
    return array.dtype.kind not in "OSU"


def numbers(value: Any) -> NDArray[np.float64]:
    """Return all numbers that a value holds, in one row; those of maps by their keys' order."""
    found = sorted(((p, a) for p, a in leaves(value) if is_numeric(a)), key=lambda leaf: str(leaf[0]))
    return np.concatenate([np.zeros(0), *(a.astype(np.float64).ravel() for _, a in found)])


def as_array(value: Any) -> NDArray[Any] | None:
    """Return a value as one array: a sequence of maps with the same keys as [n, keys], of equal tensors stacked.

    Returns:
        The array; None if the value has parts of different shapes, or keys.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict):
        return as_array([value[key] for key in sorted(value, key=str)])
    if not isinstance(value, list | tuple):
        return None if value is None else np.asarray(value)
    parts = [as_array(inner) for inner in value]
    keys = [set(inner) for inner in value if isinstance(inner, dict)]
    found = [part for part in parts if part is not None]
    alike = len({part.shape for part in found}) == 1 and all(k == keys[0] for k in keys)
    return np.stack(found) if found and alike and len(found) == len(parts) else None
