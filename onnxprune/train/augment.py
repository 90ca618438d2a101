"""Augmentation of images: flips, shifts and cutout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.settings.training import Augmentation

_CHANNELS = (1, 3, 4)  # of images


def augment(
    settings: Augmentation, inputs: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return a batch's inputs with augmented images; other inputs are unchanged."""
    return {name: array if settings.idle else _augmented(settings, array, rng) for name, array in inputs.items()}


def _augmented(settings: Augmentation, array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    first = array.ndim == 4 and array.shape[1] in _CHANNELS
    if not first and not (array.ndim == 4 and array.shape[3] in _CHANNELS):
        return array
    images = array if first else np.moveaxis(array, 3, 1)
    n, _, height, width = images.shape
    result = np.zeros_like(images)
    shifts = rng.integers(-settings.crop, settings.crop + 1, (n, 2))
    mirrored = rng.integers(0, 2, (n,))
    centers = rng.integers(0, (height, width), (n, 2))
    for i, image in enumerate(images):
        source = image[:, :, ::-1] if settings.flip and mirrored[i] else image
        (to_y, from_y), (to_x, from_x) = (_shift(s, size) for s, size in zip(shifts[i], (height, width), strict=True))
        result[i, :, to_y, to_x] = source[:, from_y, from_x]
        if settings.cutout:
            y, x = (slice(max(c - settings.cutout // 2, 0), c + (settings.cutout + 1) // 2) for c in centers[i])
            result[i, :, y, x] = 0
    return np.ascontiguousarray(result if first else np.moveaxis(result, 1, 3))


def _shift(by: int, size: int) -> tuple[slice, slice]:
    """Return the target and the source slice of a shift along an axis."""
    return slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size - max(by, 0))
