"""What a model's input tells about its preprocessing, and what is only custom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.data.ports import Dims
from onnxprune.data.recipe import Channels, Layout, Recipe, merge

_CHANNELS: Mapping[int, Channels] = {1: "GRAY", 3: "RGB", 4: "RGBA"}

_IMAGENET = Recipe(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_SYMMETRIC = Recipe(scale=1 / 127.5, mean=(1.0,))
_UNIT = Recipe(scale=1 / 255)


def layout_of(shape: Dims | None) -> Layout | None:
    """Tell by its number of channels (1, 3 or 4) where an image input has them; None if it isn't one."""
    if shape is None or len(shape) != 4:
        return None
    if shape[1] in _CHANNELS:
        return "NCHW"
    return "NHWC" if shape[3] in _CHANNELS else None


def guess_recipe(
    name: str, shape: Dims | None, dtype: np.dtype, given: Recipe | None = None
) -> tuple[Recipe, str | None]:
    """Complete a recipe for images from a model's input.

    Layout, type, number of channels and size are facts of the input. What values it expects can't be known: images in
    color are taken to be normalized as PyTorch's models are (by ImageNet's mean and deviation) where channels come
    first and as TensorFlow's are (-1 to 1) where they come last, gray ones to be 0 to 1, and integers to be raw.

    Args:
        name: the input's name.
        shape: its shape, None where a size is open.
        dtype: its type.
        given: what is known already.

    Returns:
        The recipe, and a sentence on what was assumed; None if everything was given.
    """
    given = given or Recipe()
    layout = given.layout or layout_of(shape)
    facts: dict[str, object] = {"layout": layout, "dtype": dtype.name}
    if shape is not None and len(shape) == 4 and layout is not None:
        channels, *size = (shape[1], *shape[2:]) if layout == "NCHW" else (shape[3], *shape[1:3])
        facts["channels"] = _CHANNELS.get(channels or 0)
        height, width = size
        if not given.has_geometry and height and width:
            square = height == width
            facts |= {"resize": height, "crop": (height, width)} if square else {"resize": (height, width)}
    known = merge(given, Recipe(**facts))  # type: ignore[arg-type]
    values = Recipe() if given.has_values else _values(known, dtype)
    complete = merge(known, values)
    if complete == given:
        return given, None
    text = f"assumed for input {name!r}: {complete}"
    return complete, text if given.has_values else f"{text} (the values are a guess)"


def _values(recipe: Recipe, dtype: np.dtype) -> Recipe:
    if dtype.kind in "biu":
        return Recipe()
    if recipe.channels not in ("RGB", "BGR"):
        return _UNIT
    if recipe.layout == "NHWC":
        return _SYMMETRIC
    reverse = slice(None, None, -1 if recipe.channels == "BGR" else 1)
    assert _IMAGENET.mean is not None and _IMAGENET.std is not None
    return Recipe(scale=_IMAGENET.scale, mean=_IMAGENET.mean[reverse], std=_IMAGENET.std[reverse])
