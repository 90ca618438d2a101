"""Marks of samples: by them a model tells later which samples it was fitted to, whatever their files are called."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data.batch import Batch, Dataset
from onnxprune.model.metadata import FITTED, read_note, write_notes

Marks = NDArray[np.uint16]

_BATCH = 32
_MOST = 4096  # samples to note; of 2^16 marks, so many make one in 16 other samples look like one of them


def marks_of(batch: Batch) -> Marks:
    """Return a mark of each sample of a batch: 16 bits of a hash of its inputs, without zeros that pad their ends."""
    arrays = [array for _, array in sorted(batch.inputs.items()) if array.ndim or batch.whole]
    found = []
    for i in range(batch.count):
        total = hashlib.blake2b(digest_size=2)
        for array in arrays:
            total.update((array if batch.whole else array[i]).tobytes().rstrip(b"\0") + b"|")
        found.append(int.from_bytes(total.digest(), "little"))
    return np.array(found, dtype=np.uint16)


def marks(data: Dataset) -> Marks:
    """Return the marks of all samples, in their order.

    Raises:
        DataError: the data can't be read or don't fit.
    """
    return _joined(marks_of(batch) for batch in data.batches(_BATCH))


def note_fitted(model: ModelProto, data: Dataset) -> None:
    """Write into a model's metadata which samples it was fitted to, beside those noted before; not if very many."""
    if len(data) <= _MOST:
        known = np.union1d(fitted_marks(model), marks(data)).astype("<u2")
        write_notes(model, {FITTED: base64.b64encode(known.tobytes()).decode()})


def fitted_marks(model: ModelProto) -> Marks:
    """Return the marks of the samples that a model was fitted to, as its metadata say; none if they are damaged."""
    try:
        noted = base64.b64decode(read_note(model, FITTED) or "", validate=True)
        return np.frombuffer(noted, dtype="<u2").astype(np.uint16)
    except ValueError:
        return _joined(())


def _joined(parts: Iterable[Marks]) -> Marks:
    return np.concatenate([np.zeros(0, np.uint16), *parts])
