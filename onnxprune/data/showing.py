"""Samples as people see them: inputs of a model as pictures."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from struct import pack

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import Array
from onnxprune.data.recipe import Recipe

_SIDE = 160  # most pixels of a side
_SMALLEST, _LARGEST = 4, 1 << 13


def pixels_of(array: Array, recipe: Recipe | None = None) -> NDArray[np.uint8] | None:
    """Return an input as a picture, [height, width, 1 or 3]; None if it isn't an image.

    Args:
        array: the input of one sample, with or without an axis of samples.
        recipe: how the input was made of pixels; it is undone. Without its values, the input's range is stretched.

    Examples:
        >>> pixels_of(np.full((1, 8, 8), 0.5, np.float32), Recipe(scale=1 / 255))[0, 0, 0]
        128
    """
    image = array[0] if array.ndim == 4 and len(array) == 1 else array
    if image.ndim != 3 or image.dtype.kind not in "fiu":
        return None
    layout = None if recipe is None else recipe.layout
    if layout != "NHWC" and image.shape[0] in (1, 3) and min(image.shape[1:]) >= _SMALLEST:
        image = image.transpose(1, 2, 0)
    elif image.shape[2] not in (1, 3) or min(image.shape[:2]) < _SMALLEST:
        return None
    if max(image.shape) > _LARGEST:
        return None
    step = -(-max(image.shape[:2]) // _SIDE)
    shown = np.asarray(image[::step, ::step], np.float64)
    if not np.isfinite(shown).all():
        return None
    if recipe is not None and recipe.has_values:
        for numbers, undo in ((recipe.std, np.multiply), (recipe.mean, np.add)):
            if numbers is not None:
                shown = undo(shown, np.asarray(numbers, np.float64))
        shown = shown / (recipe.scale or 1.0)
    elif not (image.dtype == np.uint8 or (shown.min() >= 0 and 1 < shown.max() <= 255)):
        low, high = shown.min(), shown.max()
        shown = (shown - low) * (255 / (high - low)) if high > low else np.zeros_like(shown)
    if recipe is not None and recipe.channels == "BGR":
        shown = shown[..., ::-1]
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def picture(inputs: Mapping[str, Array], recipes: Mapping[str, Recipe]) -> NDArray[np.uint8] | None:
    """Return the picture among the inputs of one sample; None if none is an image."""
    for name, array in inputs.items():
        found = pixels_of(array, recipes.get(name))
        if found is not None:
            return found
    return None


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture [height, width, 1 or 3] as a PNG file (ISO/IEC 15948:2004): one row after the other, unfiltered.

    Examples:
        >>> png(np.zeros((2, 2, 1), np.uint8))[1:4]
        b'PNG'
    """
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    head = pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    parts = (pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
