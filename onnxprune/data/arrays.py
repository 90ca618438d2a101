"""Data in arrays: in memory, or memory-mapped from .npz and .npy files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.archive import Archive
from onnxprune.data.batch import Array, Batch, Source, chunks
from onnxprune.data.inputs import InputSpec, assign
from onnxprune.data.npy import map_npy
from onnxprune.errors import DataError


class ArraySource(Source):
    """Samples along the first axis of arrays."""

    def __init__(
        self,
        where: str,
        inputs: Mapping[str, Array],
        labels: Array | None,
        constants: Mapping[str, Array] | None = None,
        whole: bool = False,
        scalars: Collection[str] = (),
    ) -> None:
        """Check that the arrays have the same number of samples.

        Args:
            where: their name, for messages.
            inputs: an array for each model input, samples along the first axis.
            labels: an array of labels, likewise.
            constants: arrays for inputs that are the same for all samples.
            whole: whether each sample has the model's own shapes, without an axis of samples.
            scalars: inputs without axes, one number for each sample. A batch has room for only one, so that samples
                come one by one.

        Raises:
            DataError: the arrays have different lengths (OP706, OP708), or there are no samples (OP702).
        """
        self.where, self.inputs, self.labels, self.whole = where, inputs, labels, whole
        self.constants, self.scalars = constants or {}, scalars
        lengths = {name: len(array) for name, array in inputs.items()}
        self._length = max(lengths.values(), default=0)
        if not self._length:
            raise DataError("OP702", "no array has samples along its first axis", where=where)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name!r} {n}" for name, n in lengths.items())
            raise DataError("OP706", f"the arrays have different numbers of samples: {found}", where=where)
        if labels is not None and (labels.ndim == 0 or len(labels) != self._length):
            count = len(labels) if labels.ndim else "no axis of"
            raise DataError("OP708", f"there are {count} labels for {self._length} samples", where=where)

    @property
    def labeled(self) -> bool:
        """Whether there is an array of labels."""
        return self.labels is not None

    def __len__(self) -> int:
        """Count the samples."""
        return self._length

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield samples (None for all) in batches of a size; whole samples, and those with scalars, come one by one."""
        chosen = np.arange(self._length) if indices is None else indices
        for rows in chunks(chosen, 1 if self.whole or self.scalars else size):
            labels = None if self.labels is None else _take(self.labels, rows)
            inputs = {name: _take(array, rows) for name, array in self.inputs.items()}
            for name in self.inputs if self.whole else self.scalars:
                inputs[name] = np.asarray(inputs[name][0])
            yield Batch({**inputs, **self.constants}, labels, self.whole)


def archive_arrays(archive: Archive) -> dict[str, Array]:
    """Memory-map the .npy members of an archive.

    Raises:
        DataError: one is damaged or empty (OP701 to OP704).
    """
    return {name.removesuffix(".npy"): archive.array(name) for name in archive.members if name.endswith(".npy")}


def folder_arrays(path: Path) -> dict[str, Array]:
    """Memory-map the .npy files of a folder.

    Raises:
        DataError: one can't be read, is damaged or empty (OP701 to OP703).
    """
    return {file.stem: map_npy(file) for file in sorted(path.glob("*.npy"))}


def array_source(
    arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, label: str | None = None
) -> tuple[ArraySource, tuple[str, ...]]:
    """Match arrays to a model's inputs.

    If an array has one axis more than its input, its samples are whole: each has the input's own shape. Arrays of the
    other inputs are then stacked likewise, or apply to all samples. An input without axes takes one number for all
    samples, or one for each.

    Returns:
        The source, and notes on what was assumed.

    Raises:
        DataError: the arrays don't fit (OP702, OP706, OP708).
    """
    named, labels, unused = assign(arrays, inputs, where, label)
    ranks = {spec.name: None if spec.shape is None else len(spec.shape) for spec in inputs}
    scalars = {name for name, array in named.items() if ranks[name] == 0 and array.ndim == 1}
    whole = any(array.ndim - 1 == ranks[name] for name, array in named.items() if name not in scalars)
    same = {name for name, array in named.items() if array.ndim == 0 or (whole and array.ndim == ranks[name])}
    constants = {name: np.array(named[name]) for name in same}
    samples = {name: array for name, array in named.items() if name not in constants}
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    if zeros := [name for name, array in named.items() if not any(array is given for given in arrays.values())]:
        more = f" and {len(zeros) - 2} more" if len(zeros) > 2 else ""
        notes.append(f"zeros, as there is no array for it: {', '.join(zeros[:2])}{more}")
    if scalars and not whole:
        notes.append(f"{', '.join(sorted(scalars))}: one number for each sample, so samples run one by one")
    return ArraySource(where, samples, labels, constants, whole or scalars == set(samples), scalars), tuple(notes)


def _take(array: Array, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Copy rows of an array, in native byte order."""
    first, last = int(rows[0]), int(rows[-1])
    adjacent = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    taken = array[first : last + 1] if adjacent else array[rows]
    return np.array(taken, dtype=array.dtype.newbyteorder("="))
