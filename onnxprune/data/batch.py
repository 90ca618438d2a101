"""Batches, and the interfaces of datasets and of the sources behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = Sequence[int] | NDArray[np.int64]

IGNORED = -1
"""The label of a sample, or of a position of a dense label, that isn't evaluated."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: an array for each model input, samples along the first axis. A scalar array applies to all samples.
        labels: labels, samples along the first axis: class indices [n], classes of positions [n, ...], or whatever a
            user's metric takes; `IGNORED` for classes that aren't evaluated.
        whole: whether the inputs are a single sample in the model's own shapes, without an axis of samples.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    whole: bool = False

    @property
    def count(self) -> int:
        """Number of samples."""
        if self.whole:
            return 1
        return next(len(array) for array in self.inputs.values() if array.ndim)


class Dataset(Protocol):
    """Samples in a fixed order that can be iterated any number of times."""

    @property
    def known_length(self) -> int | None:
        """Number of samples, or None if they have to be read to count them."""

    @property
    def labeled(self) -> bool:
        """Whether batches have labels."""

    def __len__(self) -> int:
        """Count the samples. A stream is read once for this."""

    def name(self, position: int) -> str:
        """Return a sample's name for messages: its file or array, and the position there."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the samples in batches of a size; the last batch may be smaller.

        Models with a fixed batch size get batches of that size instead.

        Raises:
            DataError: data can't be read, or don't fit the model.
        """

    def subset(self, indices: Indices) -> Dataset:
        """Return some of the samples, in the order of the indices; streams keep their own order.

        Raises:
            DataError: an index is out of range, or there are no indices (OP712).
        """


class Source(ABC):
    """Stored samples, before preprocessing.

    Attributes:
        where: name of the source, for messages.
    """

    sequential: ClassVar[bool] = False
    """Whether samples can only be read in ascending order of their indices."""

    where: str

    @property
    def known_length(self) -> int | None:
        """Number of samples, or None if they have to be read to count them."""
        return len(self)

    @property
    @abstractmethod
    def labeled(self) -> bool:
        """Whether batches have labels."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the samples."""

    def name(self, index: int) -> str:
        """Return a sample's name for messages."""
        return f"{self.where}, sample {index}"

    def text(self, index: int) -> str | None:
        """Return a sample's text; None if it isn't one."""
        return None

    @abstractmethod
    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield samples (None for all) in batches of a size."""

    def evened(self, indices: NDArray[np.int64] | None) -> Source:
        """Return a source whose batches of these samples (None for all) have the same shape, but for their number.

        Raises:
            DataError: samples differ in shape, and the model can't tell padding (OP706).
        """
        return self


def chunks(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Split indices into pieces of a size; the last may be smaller."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
