"""Augmentation of images: flips, shifts and cutout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)  # of images


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random augmentation of images.

    Attributes:
        flip: whether images are flipped horizontally, with probability 1/2.
        crop: maximum shift in pixels along both axes; zero-padded.
        cutout: side in pixels of a square that is set to zero (DeVries and Taylor, 2017); 0 for none.
    """

    flip: bool = False
    crop: int = 0
    cutout: int = 0

    @property
    def idle(self) -> bool:
        """Whether images stay unchanged."""
        return not (self.flip or self.crop or self.cutout)

    def __call__(self, inputs: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return a batch's inputs with augmented images; other inputs are unchanged."""
        return {name: array if self.idle else self._augmented(array, rng) for name, array in inputs.items()}

    def _augmented(self, array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        first = array.ndim == 4 and array.shape[1] in _CHANNELS
        if not first and not (array.ndim == 4 and array.shape[3] in _CHANNELS):
            return array
        images = array if first else np.moveaxis(array, 3, 1)
        n, _, height, width = images.shape
        result = np.zeros_like(images)
        shifts = rng.integers(-self.crop, self.crop + 1, (n, 2))
        mirrored = rng.integers(0, 2, (n,))
        centers = rng.integers(0, (height, width), (n, 2))
        for i, image in enumerate(images):
            source = image[:, :, ::-1] if self.flip and mirrored[i] else image
            (to_y, from_y), (to_x, from_x) = (
                _shift(s, size) for s, size in zip(shifts[i], (height, width), strict=True)
            )
            result[i, :, to_y, to_x] = source[:, from_y, from_x]
            if self.cutout:
                y, x = (slice(max(c - self.cutout // 2, 0), c + (self.cutout + 1) // 2) for c in centers[i])
                result[i, :, y, x] = 0
        return np.ascontiguousarray(result if first else np.moveaxis(result, 1, 3))


def _shift(by: int, size: int) -> tuple[slice, slice]:
    """Return the target and the source slice of a shift along an axis."""
    return slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size - max(by, 0))
