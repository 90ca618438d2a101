"""How an array becomes a model input: guessed from shapes and types, completed by the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import Array
from onnxprune.data.inputs import Dims, InputSpec
from onnxprune.data.pixels import arithmetic, reshape_images, values
from onnxprune.data.recipe import WHERE, Channels, Layout, Recipe, merge
from onnxprune.data.usual import IMAGENET, SIGNED, UNIT
from onnxprune.errors import DataError

_CHANNELS: Mapping[int, Channels] = {1: "GRAY", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Fit:
    """The conversion of stored arrays to a model input.

    Attributes:
        spec: the input.
        rank: number of axes of the arrays.
        dtype: their type.
        recipe: the preprocessing, completed from the input if the arrays hold images.
        images: the channel axis of arrays of images (0 if they have none), None for other arrays.
        whole: whether samples come one by one in the model's own shapes.
        note: what was assumed.
        guessed: whether the values of images are a guess.
    """

    spec: InputSpec
    rank: int
    dtype: np.dtype
    recipe: Recipe
    images: int | None = None
    whole: bool = False
    note: str | None = None
    guessed: bool = False

    def __call__(self, array: Array, where: str) -> Array:
        """Convert an array of samples.

        Raises:
            DataError: it doesn't fit the input (OP706), or images are too small (OP705).
        """
        if (array.ndim, array.dtype) != (self.rank, self.dtype):
            cause = f"{array.dtype} of {array.ndim} axes comes after {self.dtype} of {self.rank} axes"
            raise DataError("OP706", cause, where=where)
        if self.images is None:
            result = arithmetic(array, self.recipe, self.spec.dtype)
        else:
            pixels = array[..., None] if self.images == 0 else np.moveaxis(array, self.images, -1)
            if self.dtype == np.uint8:
                pixels = reshape_images(pixels, self.recipe, where)
            result = values(pixels, self.recipe, self.spec.dtype)
        if not self.spec.takes(result.shape, whole=self.whole):
            cause = f"input {self.spec} doesn't take an array {list(result.shape)}"
            raise DataError("OP706", cause, where=where)
        return _cast(result, self.spec, where)


def fit(
    spec: InputSpec,
    shape: tuple[int, ...],
    dtype: np.dtype,
    recipe: Recipe,
    *,
    whole: bool = False,
    said: Recipe | None = None,
) -> Fit:
    """Decide how an array becomes an input.

    Bytes for an image input are images: the recipe applies to them, completed by a guess. Other numbers are taken as
    preprocessed, except that the recipe's values and layout still apply.

    Args:
        spec: the input.
        shape: the array's shape, samples along the first axis.
        dtype: its type.
        recipe: the given preprocessing.
        whole: whether samples come one by one in the model's own shapes.
        said: the preprocessing of images that the model's file declares.

    Raises:
        DataError: the recipe can't be applied to such an array (OP709).
    """
    if recipe.dtype not in (None, spec.dtype.name):
        raise DataError("OP709", f"dtype is {recipe.dtype}, but input {spec} isn't", where=WHERE)
    bytes_ = dtype == np.uint8
    axis = None if whole else _channel_axis(shape)
    layout = recipe.layout or layout_of(spec.shape)
    if layout is None:
        if bytes_ and axis and (spec.shape is None or len(spec.shape) == 4):
            hint = "add layout=NCHW or layout=NHWC"
            raise DataError("OP709", f"where does input {spec} have its channels?", where=WHERE, hint=hint)
        axis = None
    if axis is not None and bytes_:
        known = merge(recipe, said) if said is not None and not recipe.has_values else recipe
        complete, note = guess_recipe(spec.name, spec.shape, spec.dtype, known)
        if known != recipe:
            note = "; ".join(filter(None, [f"as the file says: {said}", note]))
        guessed = not known.has_values and spec.dtype.kind not in "biu"
        return Fit(spec, len(shape), dtype, complete, axis, note=note, guessed=guessed)
    if recipe.has_geometry:
        cause = f"input {spec} gets arrays that aren't 8-bit images, and only those can be resized or cropped"
        raise DataError("OP709", cause, where=WHERE)
    if axis is not None and not (recipe.channels is None and not recipe.has_values and spec.takes(shape)):
        complete, _ = guess_recipe(spec.name, spec.shape, spec.dtype, recipe)
        kept = Recipe(
            channels=complete.channels, scale=recipe.scale, mean=recipe.mean, std=recipe.std, layout=complete.layout
        )
        return Fit(spec, len(shape), dtype, kept, axis)
    return Fit(spec, len(shape), dtype, recipe, whole=whole)


def layout_of(shape: Dims | None) -> Layout | None:
    """Return the layout of an image input, by where 1, 3 or 4 channels are; None if it isn't one."""
    if shape is None or len(shape) != 4:
        return None
    if shape[1] in _CHANNELS:
        return "NCHW"
    return "NHWC" if shape[3] in _CHANNELS else None


def guess_recipe(
    name: str, shape: Dims | None, dtype: np.dtype, given: Recipe | None = None
) -> tuple[Recipe, str | None]:
    """Complete a recipe for images from a model's input.

    Layout, type, number of channels and size follow from the input. The value range can't be known and is guessed:
    color images are normalized by ImageNet's mean and deviation in NCHW models (as in PyTorch), to -1..1 in NHWC models
    (as in TensorFlow); gray images are scaled to 0..1; integers stay raw.

    Args:
        name: the input's name.
        shape: its shape, None for unknown sizes.
        dtype: its type.
        given: the given preprocessing.

    Returns:
        The recipe, and a sentence on what was assumed; None if nothing was.
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
    complete = known if given.has_values else _guess_values(known, dtype)
    if complete == given:
        return given, None
    if given.has_values:
        added = {
            f.name: getattr(known, f.name) for f in fields(known) if getattr(known, f.name) != getattr(given, f.name)
        }
        return complete, f"added for input {name!r}, by its shape: {Recipe(**added)}"
    return complete, f"assumed for input {name!r}: {complete}" + (
        " (the values are a guess)" if complete != known else ""
    )


def _guess_values(known: Recipe, dtype: np.dtype) -> Recipe:
    """Complete a recipe by the values that are most usual."""
    if dtype.kind in "biu":
        return known
    color = known.channels in ("RGB", "BGR")
    return (UNIT if not color else SIGNED if known.layout == "NHWC" else IMAGENET).ordered(known)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the channel axis of an array of images: the last, the second, or 0 for none; None for other arrays."""
    if len(shape) == 3:
        return 0
    if len(shape) != 4:
        return None
    return 3 if shape[3] in _CHANNELS else 1 if shape[1] in _CHANNELS else None


def _cast(array: NDArray[Any], spec: InputSpec, where: str) -> Array:
    """Convert to the input's type; only floats may lose precision."""
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind not in "US":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(spec.dtype)
        if spec.dtype.kind not in "biu" or bool((array == cast).all()):
            return cast
    hint = f"convert it with array.astype({spec.dtype.name!r})"
    raise DataError("OP706", f"input {spec} doesn't take {array.dtype} values as they are", where=where, hint=hint)
