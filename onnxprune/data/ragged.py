"""Samples of different length: padded where the model has a mask for it, else batched by length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import Array, Batch, Source, chunks
from onnxprune.data.inputs import LABELS, InputSpec, assign, named
from onnxprune.data.records import Records, number
from onnxprune.errors import DataError

FILL = -100
"""Fills up labels of positions if no label is named for it, as training frameworks do."""

_MASK = re.compile(r"mask", re.IGNORECASE)
_LENGTHS = re.compile(r"len", re.IGNORECASE)
_POSITIONS = re.compile(r"position_?ids?", re.IGNORECASE)
_READ = 256  # samples read at once
_SIZES = ("lengths", "length", "lens")  # of an archive's arrays

Sample = tuple[Mapping[str, Array], Any]
"""Arrays without an axis of samples, and a label or None."""

Read = Callable[[NDArray[np.int64]], Sequence[Sample]]
"""Returns samples by their positions."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How samples become equally long.

    Attributes:
        values: what fills up inputs, by name; 0 by default.
        left: whether it goes in front.
    """

    values: Mapping[str, int]
    left: bool = False


class RaggedSource(Source):
    """Samples of different length.

    Attributes:
        padded: whether the model can tell padding; otherwise, only samples of the same shape share a batch.
    """

    def __init__(
        self,
        where: str,
        count: int,
        inputs: Sequence[InputSpec],
        read: Read,
        *,
        padding: Padding | None = None,
        ignore: int | None = None,
        name: Callable[[int], str] | None = None,
        text: Callable[[int], str] | None = None,
    ) -> None:
        """Check that the first sample fits the model.

        Args:
            where: the samples' name, for messages.
            count: their number.
            inputs: the model's inputs.
            read: returns samples; their arrays are matched to inputs by name.
            padding: how samples become equally long.
            ignore: fills up labels of positions.
            name: returns a sample's name, for messages.
            text: returns a sample's text, if samples are texts.

        Raises:
            DataError: an input has no array (OP706).
        """
        self.where, self._inputs, self._read, self._count = where, {spec.name: spec for spec in inputs}, read, count
        self._padding, self._ignore, self._name, self._text = padding or Padding({}), ignore, name, text
        made = {spec.name for spec in inputs if self._makes(spec)}
        self.padded = any(_MASK.search(name) or _LENGTHS.search(name) for name in made)
        self._sizes: Mapping[str, tuple[int, ...]] = {}
        ((arrays, label),) = read(np.zeros(1, np.int64))
        self._labeled = label is not None
        self.unused = self._batch([(arrays, label)])[1]

    @property
    def labeled(self) -> bool:
        """Whether the first sample has a label."""
        return self._labeled

    def __len__(self) -> int:
        """Count the samples."""
        return self._count

    def name(self, index: int) -> str:
        """Return a sample's name for messages."""
        return super().name(index) if self._name is None else self._name(index)

    def text(self, index: int) -> str | None:
        """Return a sample's text; None if samples aren't texts."""
        return None if self._text is None else self._text(index)

    def by_length(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return samples in an order in which those of the same shape are neighbors."""
        keys = [self._shapes(sample) for rows in chunks(chosen, _READ) for sample, _ in self._read(rows)]
        return chosen[sorted(range(len(keys)), key=keys.__getitem__)]

    def evened(self, indices: NDArray[np.int64] | None) -> Source:
        """Return a source that pads all samples to the longest of these (None for all).

        Raises:
            DataError: samples differ in shape, and the model can't tell padding (OP706).
        """
        most: dict[str, tuple[int, ...]] = {}
        for rows in chunks(np.arange(self._count) if indices is None else indices, _READ):
            for sample, _ in self._read(rows):
                for name, array in sample.items():
                    shape = self._target(name, [array])
                    if not self.padded and most.get(name, shape) != shape:
                        cause = "samples of different length can't be trained on together: the model has no mask"
                        raise DataError("OP706", cause, where=self.where, hint="give samples of one length")
                    known = most.get(name, shape)
                    most[name] = tuple(map(max, known, shape)) if len(known) == len(shape) else shape
        found = copy(self)
        found._sizes = most
        return found

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield samples (None for all) in batches of a size, or smaller if samples differ in shape.

        Raises:
            DataError: samples can't be read, or don't fit the model (OP701, OP706, OP708).
        """
        chosen = np.arange(self._count) if indices is None else indices
        for rows in chunks(chosen, size):
            samples = self._read(rows)
            if self.padded:
                yield self._batch(samples)[0]
                continue
            for _, alike in groupby(samples, lambda sample: self._shapes(sample[0])):
                yield self._batch(list(alike))[0]

    def _shapes(self, sample: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a sample's arrays get if they aren't padded beyond what the model asks for."""
        return tuple(self._target(name, [array]) for name, array in sample.items())

    def _batch(self, samples: Sequence[Sample]) -> tuple[Batch, tuple[str, ...]]:
        """Return a batch, and the names of unused arrays."""
        first = samples[0][0]
        arrays = {name: self._stacked(name, [sample[name] for sample, _ in samples]) for name in first}
        lead = next((name for name in first if first[name].ndim), None)
        if lead is not None:
            lengths = [min(len(sample[lead]), arrays[lead].shape[1]) for sample, _ in samples]
            arrays |= self._made(set(arrays), lengths, arrays[lead].shape[1])
        found, _, unused = assign(arrays, tuple(self._inputs.values()), self.where)
        made = {name for name, spec in self._inputs.items() if self._makes(spec)}
        labels = [label for _, label in samples if label is not None]
        if len(labels) not in (0, len(samples)):
            raise DataError("OP708", "only some of the samples have a label", where=self.where)
        stacked = _labels(labels, arrays, lead, self._ignore, self._padding.left, self.where) if labels else None
        return Batch(found, stacked), tuple(name for name in unused if name not in made)

    def _target(self, name: str, arrays: Sequence[Array]) -> tuple[int, ...]:
        """Return the shape that samples are brought to: the model's sizes, else the largest."""
        spec = self._spec(name)
        sizes = self._sizes.get(name) or tuple(np.max([array.shape for array in arrays], axis=0).tolist())
        if spec is None or spec.shape is None or len(spec.shape) != len(sizes) + 1:
            return sizes
        return tuple(want or size for want, size in zip(spec.shape[1:], sizes, strict=True))

    def _stacked(self, name: str, arrays: Sequence[Array]) -> Array:
        if len({array.ndim for array in arrays}) > 1:
            raise DataError("OP706", f"samples of {name!r} differ in their number of axes", where=self.where)
        shape, spec = self._target(name, arrays), self._spec(name)
        kind = np.result_type(*arrays)
        if spec is not None and (kind.kind in "biu" or spec.dtype.kind not in "biu"):
            kind = spec.dtype
        value = 0 if spec is None else self._padding.values.get(spec.name, 0)
        full = np.full((len(arrays), *shape), value, kind)
        for to, array in zip(full, arrays, strict=True):
            cut = array[tuple(map(slice, shape))]
            at = [slice(n - m, None) if self._padding.left else slice(m) for n, m in zip(shape, cut.shape, strict=True)]
            to[tuple(at)] = cut
        return full

    def _spec(self, name: str) -> InputSpec | None:
        found = named(self._inputs, (name,))
        if found is None and len(self._inputs) == 1:
            return next(iter(self._inputs.values()))
        return None if found is None else self._inputs[found]

    def _makes(self, spec: InputSpec) -> bool:
        """Whether an input follows from the lengths of samples: a mask, their number of entries, or positions."""
        if spec.shape is None or spec.state or len(spec.shape) not in (1, 2):
            return False
        if len(spec.shape) == 1:
            return spec.dtype.kind in "iu" and _LENGTHS.search(spec.name) is not None
        return any(form.search(spec.name) for form in (_MASK, _POSITIONS))

    def _made(self, given: set[str], lengths: Sequence[int], longest: int) -> dict[str, Array]:
        """Return the inputs that follow from the lengths of samples and aren't given."""
        places = np.arange(longest)[None]
        counts = np.array(lengths)[:, None]
        mask = places >= longest - counts if self._padding.left else places < counts
        made: dict[str, Array] = {}
        for spec in self._inputs.values():
            if self._makes(spec) and named(given, (spec.name,)) is None:
                positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
                found = counts[:, 0] if len(spec.shape or ()) == 1 else mask
                made[spec.name] = (positions if _POSITIONS.search(spec.name) else found).astype(spec.dtype)
        return made


def _labels(
    labels: Sequence[Any], arrays: Mapping[str, Array], lead: str | None, ignore: int | None, left: bool, where: str
) -> Array:
    """Return labels as an array; lists, which have one for each position, are filled up."""
    if not any(isinstance(label, list | np.ndarray) for label in labels):
        return np.array(labels)
    longest = max(map(len, labels)) if lead is None else arrays[lead].shape[1]
    full = np.full((len(labels), longest), FILL if ignore is None else ignore, np.int64)
    for to, label in zip(full, labels, strict=True):
        row = np.asarray(label)
        if row.ndim != 1 or row.dtype.kind not in "biu":
            raise DataError("OP708", "lists of labels must hold a class for each position", where=where)
        row = row[:longest]
        to[slice(longest - len(row), None) if left else slice(len(row))] = row
    return full


def split_by_lengths(
    arrays: Mapping[str, Array],
    inputs: Sequence[InputSpec],
    where: str,
    *,
    ignore: int | None,
    label: str | None = None,
) -> RaggedSource | None:
    """Return samples of different length, from arrays with an array of lengths; None if there is none.

    An array has all samples in a row, one behind the other ([sum of lengths, ...]), or one sample in a row, filled up
    ([n, longest, ...]). The lengths are named `lengths`, or `NAME_lengths` for the array `NAME`, and aren't an input.

    Raises:
        DataError: lengths and arrays don't fit (OP706).
    """
    taken = {name for spec in inputs if (name := named(arrays, (spec.name,))) is not None}
    common = next((name for name in arrays if name not in taken and name.lower() in _SIZES), None)
    sizes = {}
    for name in arrays:
        own = next((key for end in _SIZES if (key := f"{name}_{end}") in arrays and key not in taken), common)
        if own is not None and name != own:
            sizes[name] = own
    tables = {key: np.asarray(arrays[key]) for key in dict.fromkeys(sizes.values())}
    plain = {name for name in arrays if name not in tables}
    if not sizes or not all(t.ndim == 1 and t.dtype.kind in "iu" and (t >= 0).all() for t in tables.values()):
        return None
    counts = {len(table) for table in tables.values()}
    if len(counts) > 1:
        raise DataError("OP706", "the arrays of lengths differ in length", where=where)
    count = counts.pop()
    starts = {}  # of samples that follow each other
    for name in plain & sizes.keys():
        table, length = tables[sizes[name]], len(arrays[name])
        if length == count:
            continue
        if length != int(table.sum()):
            cause = f"{name!r} has {length} rows, and {sizes[name]!r} adds up to {int(table.sum())} in {count} samples"
            raise DataError("OP706", cause, where=where)
        starts[name] = np.concatenate([[0], np.cumsum(table)[:-1]])
    label = named(sorted(plain - taken), LABELS if label is None else (label,))

    def sample(name: str, row: int) -> Array:
        array = arrays[name]
        if name in starts:
            start = int(starts[name][row])
            return np.array(array[start : start + int(tables[sizes[name]][row])])
        cut = name in sizes and array.ndim > 1 and array.shape[1] >= int(tables[sizes[name]].max())
        return np.array(array[row][: int(tables[sizes[name]][row])] if cut else array[row])

    def read(rows: NDArray[np.int64]) -> list[Sample]:
        found: list[Sample] = []
        for row in map(int, rows):
            mine = None if label is None else sample(label, row)
            inputs = {name: sample(name, row) for name in arrays if name in plain and name != label}
            found.append((inputs, mine if mine is None or mine.ndim else mine[()]))
        return found

    return RaggedSource(where, count, inputs, read, ignore=ignore)


def flattened(name: str, value: Any) -> dict[str, Any]:
    """Return a list of samples of different length as one array and an array of lengths; other values as they are."""
    if isinstance(value, list | tuple) and len({len(v) for v in value if hasattr(v, "__len__")}) > 1:
        rows = [np.asarray(row) for row in value]
        if len({row.shape[1:] for row in rows}) == 1:
            return {name: np.concatenate(rows), f"{name}_lengths": np.array([len(row) for row in rows])}
    return {name: value}


def listed(
    records: Records, fields: Mapping[str, str], inputs: Sequence[InputSpec], label: str | None, ignore: int | None
) -> RaggedSource:
    """Return the samples of records whose fields hold lists of numbers.

    Args:
        records: the file.
        fields: the field of each input that has one.
        inputs: the model's inputs.
        label: the field of labels.
        ignore: fills up labels of positions.

    Raises:
        DataError: a list isn't an array of numbers (OP706), or an input has none (OP706).
    """

    def read(rows: NDArray[np.int64]) -> list[Sample]:
        found: list[Sample] = []
        for row, record in zip(rows, records.read(rows), strict=True):
            arrays = {name: _numbers(record.get(field), field, records.name(row)) for name, field in fields.items()}
            found.append((arrays, label_of(records, record, label, int(row))))
        return found

    return RaggedSource(records.where, len(records), inputs, read, ignore=ignore, name=records.name)


def _numbers(value: Any, field: str, where: str) -> Array:
    try:
        array: Array = np.asarray(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        cause = f"{field!r} isn't an array of numbers"
        raise DataError("OP706", cause, where=where, hint="lists may differ in length, but not the lists within one")
    return array


def label_field(records: Records, wanted: str | None) -> str | None:
    """Return the field of labels: the one that is wanted, else one with a common name; None if there is none.

    Raises:
        DataError: there is no such field (OP708).
    """
    if wanted is None:
        return named(records.fields, LABELS)
    if wanted not in records.fields:
        hint = f"the fields are: {', '.join(records.fields)}"
        raise DataError("OP708", f"there is no field {wanted!r} of labels", where=records.where, hint=hint)
    return wanted


def label_of(records: Records, record: Mapping[str, Any], field: str | None, row: int) -> Any:
    """Return a record's label, as what all labels of the file are: numbers, text, or lists of classes.

    Raises:
        DataError: it has none, or labels are of different kinds (OP708).
    """
    if field is None:
        return None
    value, kind = record.get(field), records.column(field)
    if value is None or kind == "other":
        raise DataError("OP708", f"{field!r} isn't a label", where=records.name(row))
    if kind == "list":
        return value
    return str(value) if kind == "text" else number(value)
