"""Data brought to a model's inputs: what `open_data` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import IGNORED, Array, Batch, Dataset, Indices, Source
from onnxprune.data.fit import Fit
from onnxprune.data.ports import fixed_batch
from onnxprune.data.recipe import Recipe
from onnxprune.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Samples of a source, preprocessed and checked: a `Dataset`.

    Attributes:
        source: where the samples are.
        fits: what brings each array to its input.
        recipe: what is done to labels.
        chosen: indices of the samples, None for all.
        notes: sentences on what was assumed.
    """

    source: Source
    fits: tuple[Fit, ...]
    recipe: Recipe
    chosen: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    @property
    def known_length(self) -> int | None:
        """How many samples there are, or None if they would have to be read to know."""
        return self.source.known_length if self.chosen is None else len(self.chosen)

    @property
    def labeled(self) -> bool:
        """Whether batches have labels."""
        return self.source.labeled and self.recipe.labels != "none"

    def __len__(self) -> int:
        """Count the samples; a stream is read once for it."""
        return len(self.source) if self.chosen is None else len(self.chosen)

    def name(self, position: int) -> str:
        """Name the sample at a position of this dataset."""
        if self.chosen is None:
            return self.source.name(position)
        return self.source.name(int(self.chosen[position]))

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through the samples, so many at a time, or as many as the model is made for.

        Raises:
            DataError: data can't be read, don't fit the model, or aren't finite (OP701 to OP710).
        """
        start, fixed = 0, fixed_batch([fit.spec for fit in self.fits])
        for batch in self.source.batches(self.chosen, fixed or size):
            yield self._adapt(batch, start)
            start += batch.count

    def subset(self, indices: Indices) -> Data:
        """Give some of the samples in the order of their indices; a stream gives them in its own order.

        Raises:
            DataError: an index is out of range, or there is none (OP712).
        """
        wanted = np.asarray(indices, np.int64)
        if not wanted.size or wanted.min() < 0 or wanted.max() >= len(self):
            raise DataError("OP712", f"indices of a subset are from 0 to {len(self) - 1}, one at least")
        chosen = wanted if self.chosen is None else self.chosen[wanted]
        return replace(self, chosen=np.sort(chosen) if self.source.sequential else chosen)

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
        """Bring class labels to the model's indices; what isn't whole numbers or names is left as it is."""
        if labels.dtype.kind in "US":
            labels = self._from_names(labels.astype(str), start)
        if labels.dtype.kind not in "biu":
            finite = np.isfinite(labels)
            if not finite.all():
                raise DataError("OP707", "a label isn't finite", where=self._place(finite, start))
            return labels
        classes = labels.astype(np.int64)
        judged = np.full(classes.shape, True) if self.recipe.ignore is None else classes != self.recipe.ignore
        sound = ~judged | (classes >= max(0, -self.recipe.label_offset))
        if not sound.all():
            wrong = classes[~sound][0]
            cause = f"the label {wrong} with label_offset={self.recipe.label_offset} is no class"
            hint = f"say ignore={wrong} if it marks what isn't to be judged"
            raise DataError("OP708", cause, where=self._place(sound, start), hint=hint)
        return np.where(judged, classes + self.recipe.label_offset, IGNORED)

    def _from_names(self, labels: NDArray[np.str_], start: int) -> NDArray[np.int64]:
        if self.recipe.classes is None:
            advice = "say classes=NAME,NAME,... in the model's order, or labels=none to do without"
            raise DataError("OP708", "the labels are names", where=self.name(start), hint=advice)
        order = {name: index for index, name in enumerate(self.recipe.classes)}
        known = np.isin(labels, self.recipe.classes)
        if not known.all():
            name = str(labels[~known][0])
            near = get_close_matches(name, order, n=1)
            cause, hint = f"the label {name!r} is not one of the classes", f"did you mean {near[0]}?" if near else None
            raise DataError("OP708", cause, where=self._place(known, start), hint=hint)
        return np.vectorize(order.__getitem__, [np.int64])(labels)  # type: ignore[no-any-return]

    def _place(self, sound: NDArray[Any], start: int) -> str:
        return self.name(start + int(np.argwhere(~sound)[0][0]))


def split(data: Dataset, held_out: int | float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split data at random into a part to calibrate on and a part to judge by, without overlap.

    Args:
        data: the samples.
        held_out: size of the second part, a number of samples or a share below 1.
        seed: seed of the choice.

    Returns:
        The rest, and the part held out, both in the order of the data.

    Raises:
        DataError: a part would be empty (OP712).
    """
    count = len(data)
    size = held_out if isinstance(held_out, int) else round(held_out * count)
    if not 0 < size < count:
        raise DataError("OP712", f"can't hold out {held_out} of {count} samples: a part would be empty")
    order = np.random.default_rng(seed).permutation(count)
    rest, held = np.sort(order[size:]), np.sort(order[:size])
    return data.subset(rest), data.subset(held)


def choose(count: int, limit: int | None, seed: int) -> NDArray[np.int64] | None:
    """Choose samples at random, in order; None for all of them.

    Raises:
        DataError: the limit isn't positive (OP712).
    """
    check_limit(limit)
    if limit is None or limit >= count:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False)).astype(np.int64)


def check_limit(limit: int | None) -> None:
    """Refuse a limit that lets nothing through.

    Raises:
        DataError: it isn't positive (OP712).
    """
    if limit is not None and limit < 1:
        raise DataError("OP712", f"a limit of {limit} leaves no samples")
