"""Data from functions that yield batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import Array, Batch, Source
from onnxprune.data.inputs import InputSpec, assign
from onnxprune.errors import DataError
from onnxprune.runtime.functions import guarded

_KINDS = "biufUSV"  # V: number types unknown to NumPy, such as bfloat16


class StreamSource(Source):
    """Samples in the order in which a function yields them; it is called again for each pass."""

    sequential: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        function: Callable[[], Iterable[Any]],
        inputs: Sequence[InputSpec],
        limit: int | None = None,
        label: str | None = None,
    ) -> None:
        """Wrap a function.

        Args:
            name: its name, for messages.
            function: yields batches: arrays, dictionaries of arrays by input name (labels may be among them), or
                pairs of either and labels.
            inputs: the model's inputs.
            limit: maximum number of samples.
            label: the name of the array of labels in dictionaries; by default, common names are tried.
        """
        self.where, self.function, self.inputs, self.limit = name, function, inputs, limit
        self._label = label
        self._length: int | None = None
        self._labeled: bool | None = None

    @property
    def known_length(self) -> int | None:
        """Number of samples, None before the first full pass."""
        return self._length

    @property
    def labeled(self) -> bool:
        """Whether the first batch has labels."""
        if self._labeled is None:
            self._labeled = next(self._given()).labels is not None
        return self._labeled

    def __len__(self) -> int:
        """Count the samples, by a full pass the first time."""
        if self._length is None:
            self._length = sum(batch.count for batch in self._given())
        return self._length

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield samples (None for all) in the function's order; whole samples come one by one.

        Raises:
            DataError: the function fails (OP710), yields nothing (OP702), or what doesn't fit the model (OP706, OP708).
        """
        waiting: list[Batch] = []
        for batch in self._chosen(indices):
            if batch.whole:
                yield batch
                continue
            if waiting and not _joinable(waiting[-1], batch):
                yield _join(waiting, self.where)
                waiting = []
            waiting.append(batch)
            if sum(b.count for b in waiting) >= size:
                joined = _join(waiting, self.where)
                full = joined.count // size * size
                yield from (_rows(joined, slice(i, i + size)) for i in range(0, full, size))
                waiting = [_rows(joined, slice(full, None))] if joined.count > full else []
        if waiting:
            yield _join(waiting, self.where)

    def _chosen(self, wanted: NDArray[np.int64] | None) -> Iterator[Batch]:
        start = 0
        for batch in self._given():
            if wanted is None:
                yield batch
            else:
                low, high = np.searchsorted(wanted, (start, start + batch.count))
                if high > low:
                    yield batch if batch.whole else _rows(batch, wanted[low:high] - start)
                if high == len(wanted):
                    return
            start += batch.count

    def _given(self) -> Iterator[Batch]:
        """Yield the function's batches, up to the limit."""
        with guarded(self.where, "the function"):
            iterator = iter(self.function())
        count = 0
        while self.limit is None or count < self.limit:
            with guarded(self.where, "the function"):
                item = next(iterator, None)
            if item is None:
                break
            batch = self._batch(item)
            if self.limit is not None and batch.count > self.limit - count:
                batch = _rows(batch, slice(0, self.limit - count))
            count += batch.count
            yield from self._parts(batch)
        if not count:
            raise DataError("OP702", "the function yields no batches", where=self.where)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Split a batch with several numbers for an input without axes, which takes only one at a time."""
        own = [s.name for s in self.inputs if s.shape == () and batch.inputs[s.name].ndim == 1]
        if batch.whole or not own:
            yield batch
            return
        for i in range(batch.count):
            part = _rows(batch, slice(i, i + 1))
            yield replace(part, inputs={**part.inputs, **{name: np.asarray(batch.inputs[name][i]) for name in own}})

    def _batch(self, item: Any) -> Batch:
        pair = isinstance(item, tuple) and len(item) == 2
        inputs, labels = item if pair else (item, None)
        given = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        arrays = {str(name): as_array(value, self.where) for name, value in given.items()}
        if not isinstance(inputs, Mapping) and len(self.inputs) == 1:
            arrays = {self.inputs[0].name: arrays["inputs"]}
        found, among, _ = assign(arrays, self.inputs, self.where, None if pair else self._label)
        labels = among if labels is None else as_array(labels, self.where)
        lengths = {len(array) for array in found.values() if array.ndim}
        whole = len(lengths) != 1
        count = 1 if whole else lengths.pop()
        if count == 0:
            raise DataError("OP702", "the function yields an empty batch", where=self.where)
        if labels is not None and (labels.ndim == 0 or len(labels) != count):
            cause = f"a batch of {count} has labels of shape {list(labels.shape)}"
            raise DataError("OP708", cause, where=self.where)
        return Batch(found, labels, whole)


def as_array(value: Any, where: str) -> Array:
    """Convert a value to an array of numbers or strings.

    Raises:
        DataError: it can't be converted (OP710).
    """
    with guarded(where, "converting the data to arrays"):
        array: Array = np.asarray(value)
    if array.dtype.kind not in _KINDS:
        cause = f"{type(value).__name__} isn't an array of numbers"
        hint = "give arrays, pairs (inputs, labels), or dictionaries by input name"
        raise DataError("OP710", cause, where=where, hint=hint)
    return array


def _joinable(first: Batch, other: Batch) -> bool:
    """Whether two batches can become one: inputs without axes are the same, and belong to batches, not to samples."""
    scalars = [name for name, array in first.inputs.items() if not array.ndim]
    same = all(np.array_equal(first.inputs[name], other.inputs[name]) for name in scalars)
    return same and not (scalars and 1 in (first.count, other.count))


def _rows(batch: Batch, rows: slice | NDArray[np.int64]) -> Batch:
    inputs = {name: array[rows] if array.ndim else array for name, array in batch.inputs.items()}
    return Batch(inputs, None if batch.labels is None else batch.labels[rows])


def _join(batches: Sequence[Batch], where: str) -> Batch:
    first = batches[0]
    if len(batches) == 1:
        return first
    try:
        inputs = {
            name: np.concatenate([b.inputs[name] for b in batches]) if array.ndim else array
            for name, array in first.inputs.items()
        }
        every = [b.labels for b in batches if b.labels is not None]
        if len(every) not in (0, len(batches)):
            raise ValueError
        labels = np.concatenate(every) if every else None
    except ValueError as error:
        cause = "batches differ in shape, or only some have labels"
        raise DataError("OP706", cause, where=where) from error
    return Batch(inputs, labels)
