"""Data converted to a model's inputs: what `open_data` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array, Batch, Dataset, Indices, Source
from onnxprune.data.fit import Fit
from onnxprune.data.inputs import fixed_batch
from onnxprune.data.recipe import Recipe
from onnxprune.errors import DataError
from onnxprune.errors.words import did_you_mean
from onnxprune.settings.evaluation import TaskName, TaskSettings


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Samples of a source, preprocessed and checked: a `Dataset`.

    Attributes:
        source: the stored samples.
        fits: the conversion of each input's arrays.
        recipe: the preprocessing of labels.
        chosen: indices of the samples, None for all.
        notes: what was assumed.
        reading: what outputs and labels mean, as the user says.
        kind: the task that the kind of labels tells.
    """

    source: Source
    fits: tuple[Fit, ...]
    recipe: Recipe
    chosen: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    reading: TaskSettings | None = None
    kind: TaskName | None = None

    @property
    def known_length(self) -> int | None:
        """Number of samples, or None if they have to be read to count them."""
        return self.source.known_length if self.chosen is None else len(self.chosen)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes, None for any."""
        return 1 if any(fit.whole and fit.rank for fit in self.fits) else fixed_batch([fit.spec for fit in self.fits])

    @property
    def labeled(self) -> bool:
        """Whether batches have labels."""
        return self.source.labeled and self.recipe.labels != "none"

    def __len__(self) -> int:
        """Count the samples. A stream is read once for this."""
        return len(self.source) if self.chosen is None else len(self.chosen)

    def name(self, position: int) -> str:
        """Return the name of the sample at a position of this dataset."""
        if self.chosen is None:
            return self.source.name(position)
        return self.source.name(int(self.chosen[position]))

    def text(self, position: int) -> str | None:
        """Return the text of the sample at a position of this dataset; None if it isn't one."""
        return self.source.text(position if self.chosen is None else int(self.chosen[position]))

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the samples in batches of a size, or of the model's fixed batch size.

        Raises:
            DataError: data can't be read, don't fit the model, or aren't finite (OP701 to OP710).
        """
        start = 0
        for batch in self.source.batches(self.chosen, self.fixed_batch or size):
            yield self._adapt(batch, start)
            start += batch.count

    def subset(self, indices: Indices) -> Data:
        """Return some of the samples, in the order of the indices; streams keep their own order.

        Raises:
            DataError: an index is out of range, or there are no indices (OP712).
        """
        wanted = np.asarray(indices, np.int64)
        if not wanted.size or wanted.min() < 0 or wanted.max() >= len(self):
            raise DataError("OP712", f"a subset needs at least one index, each from 0 to {len(self) - 1}")
        chosen = wanted if self.chosen is None else self.chosen[wanted]
        return replace(self, chosen=np.sort(chosen) if self.source.sequential else chosen)

    def evened(self) -> Data:
        """Return the samples in one shape: of different length, all are padded to the longest.

        Raises:
            DataError: the model can't tell padding (OP706).
        """
        return replace(self, source=self.source.evened(self.chosen))

    def _adapt(self, batch: Batch, start: int) -> Batch:
        where = self.name(start)
        inputs = {}
        for fit in self.fits:
            name = fit.spec.name
            inputs[name] = array = fit(batch.inputs[name], where)
            finite = np.isfinite(array)
            if not finite.all():
                position = start if fit.whole else start + int(np.argwhere(~finite)[0][0])
                cause = f"the data for input {fit.spec} hold a value that isn't finite"
                raise DataError("OP707", cause, where=self.name(position))
        labels = None if self.recipe.labels == "none" else batch.labels
        return Batch(inputs, None if labels is None else self._labels(labels, start), batch.whole)

    def _labels(self, labels: Array, start: int) -> Array:
        """Convert class labels, integers or names, to the model's indices; leave other labels unchanged."""
        reading = self.reading or TaskSettings()
        text = reading.task == "ctc" or reading.alphabet is not None
        if labels.dtype.kind in "Ubiu" and (text or (reading.task == "regression" and labels.dtype.kind != "U")):
            return labels
        if labels.dtype.kind in "US":
            labels = self._from_names(labels.astype(str), start)
        if labels.dtype.kind not in "biu":
            finite = np.isfinite(labels)
            if not finite.all():
                raise DataError("OP707", "a label isn't finite", where=self._place(finite, start))
            return labels
        classes = labels.astype(np.int64)
        counted = np.full(classes.shape, True) if self.recipe.ignore is None else classes != self.recipe.ignore
        valid = ~counted | (classes >= max(0, -self.recipe.label_offset))
        if not valid.all():
            wrong = classes[~valid][0]
            cause = f"the label {wrong} with label_offset={self.recipe.label_offset} is no class"
            hint = f"add ignore={wrong} if it marks what isn't to be evaluated; set `task` to regression for numbers"
            raise DataError("OP708", cause, where=self._place(valid, start), hint=hint)
        return np.where(counted, classes + self.recipe.label_offset, IGNORED)

    def _from_names(self, labels: NDArray[np.str_], start: int) -> NDArray[np.int64]:
        if self.recipe.classes is None:
            hint = "add classes=NAME,NAME,... in the model's order, or labels=none to drop them; text needs `alphabet`"
            raise DataError("OP708", "the labels are names", where=self.name(start), hint=hint)
        order = {name: index for index, name in enumerate(self.recipe.classes)}
        known = np.isin(labels, self.recipe.classes)
        if not known.all():
            name = str(labels[~known][0])
            cause = f"the label {name!r} is not one of the classes"
            raise DataError("OP708", cause, where=self._place(known, start), hint=did_you_mean(name, order))
        return np.vectorize(order.__getitem__, [np.int64])(labels)  # type: ignore[no-any-return]

    def _place(self, valid: NDArray[Any], start: int) -> str:
        """Return the name of the first sample with an invalid label."""
        return self.name(start + int(np.argwhere(~valid)[0][0]))


def split(
    data: Dataset, held_out: int | float, *, seed: int = 0, last: NDArray[np.bool_] | None = None
) -> tuple[Dataset, Dataset]:
    """Split data at random into a calibration part and a held-out part, without overlap.

    Args:
        data: the samples.
        held_out: size of the held-out part, a number of samples or a fraction below 1.
        seed: random seed.
        last: whether each sample is held out only where the others aren't enough, shape (samples,).

    Returns:
        The rest, and the held-out part, both in the order of the data.

    Raises:
        DataError: a part would be empty (OP712).
    """
    count = len(data)
    size = held_out if isinstance(held_out, int) else round(held_out * count)
    if not 0 < size < count:
        raise DataError("OP712", f"can't hold out {held_out} of {count} samples: a part would be empty")
    order = np.random.default_rng(seed).permutation(count)
    if last is not None:
        order = order[np.argsort(last[order], kind="stable")]
    rest, held = np.sort(order[size:]), np.sort(order[:size])
    return data.subset(rest), data.subset(held)


def some(data: Dataset, most: int, seed: int) -> Dataset:
    """Return samples chosen at random, in the order of the data; all if they are no more than `most`."""
    if len(data) <= most:
        return data
    return data.subset(np.sort(np.random.default_rng(seed).permutation(len(data))[:most]))
