"""What data are to the rest of the package: samples in a fixed order, given in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = Sequence[int] | NDArray[np.int64]

IGNORED = -1
"""The label of what isn't to be judged: a sample, or a position of a dense label."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: an array for each of a model's inputs. Samples are along the first axis, except that an array without
            axes holds for all of them.
        labels: what is known of the samples, along the first axis: class indices [n], classes of positions
            [n, ...], or whatever a user's metric takes; `IGNORED` where a class isn't to be judged.
        whole: whether the inputs are one sample as the model takes it: the model's inputs have no common axis of
            samples.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    whole: bool = False

    @property
    def count(self) -> int:
        """How many samples there are."""
        if self.whole:
            return 1
        return next(len(array) for array in self.inputs.values() if array.ndim)


class Dataset(Protocol):
    """Samples in a fixed order that can be gone through any number of times."""

    @property
    def known_length(self) -> int | None:
        """How many samples there are, or None if they would have to be read to know."""

    @property
    def labeled(self) -> bool:
        """Whether batches have labels."""

    def __len__(self) -> int:
        """Count the samples; a stream is read once for it."""

    def name(self, position: int) -> str:
        """Name a sample in a message: the file or the array, and where in it."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through the samples, so many at a time, the last batch perhaps fewer.

        A model of fixed batch size gets batches of its size instead.

        Raises:
            DataError: data can't be read, or don't fit the model.
        """

    def subset(self, indices: Indices) -> Dataset:
        """Give some of the samples in the order of their indices; a stream gives them in its own order.

        Raises:
            DataError: an index is out of range, or there is none (OP712).
        """


class Source(Protocol):
    """Samples as they are stored, before anything is done to them."""

    sequential: ClassVar[bool]
    """Whether samples can only be read in ascending order of their indices."""

    @property
    def known_length(self) -> int | None:
        """How many samples there are, or None if they would have to be read to know."""

    @property
    def labeled(self) -> bool:
        """Whether batches have labels."""

    def __len__(self) -> int:
        """Count the samples."""

    def name(self, index: int) -> str:
        """Name a sample in a message."""

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Read samples (None for all), so many at a time."""


def chunks(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut indices into pieces of a size."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
