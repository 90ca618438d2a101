"""What is done to an array before a model takes it, decided by its shape and type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.batch import Array
from onnxprune.data.guess import guess_recipe, layout_of
from onnxprune.data.pixels import arithmetic, reshape_images, values
from onnxprune.data.ports import InputSpec
from onnxprune.data.recipe import Recipe
from onnxprune.errors import DataError

_CHANNELS = (1, 3, 4)
_WHERE = "preprocessing recipe"


@dataclass(frozen=True, slots=True)
class Fit:
    """The way from a stored array to an input.

    Attributes:
        spec: the input.
        rank: number of axes of the arrays that it is for.
        dtype: their type.
        recipe: what to do, completed from the input where the array holds images.
        images: where an array of images has its channels (0 if nowhere), None for other arrays.
        whole: whether a sample is all that the model takes at once.
        note: what was assumed.
    """

    spec: InputSpec
    rank: int
    dtype: np.dtype
    recipe: Recipe
    images: int | None = None
    whole: bool = False
    note: str | None = None

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


def fit(spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype, recipe: Recipe, *, whole: bool = False) -> Fit:
    """Decide how an array becomes an input.

    Bytes for an image input are images: they go through the recipe, completed by a guess. Other numbers are taken to
    be prepared already, but what the recipe says of values, and the order of axes, still applies.

    Args:
        spec: the input.
        shape: the array's shape, samples along the first axis.
        dtype: its type.
        recipe: what is known.
        whole: whether a sample is all that the model takes at once.

    Raises:
        DataError: the recipe asks for what can't be done to such an array (OP709).
    """
    if recipe.dtype not in (None, spec.dtype.name):
        raise DataError("OP709", f"dtype is {recipe.dtype}, but input {spec} isn't", where=_WHERE)
    bytes_ = dtype == np.uint8
    axis = None if whole else _channel_axis(shape)
    layout = recipe.layout or layout_of(spec.shape)
    if layout is None:
        if bytes_ and axis and (spec.shape is None or len(spec.shape) == 4):
            hint = "say layout=NCHW or layout=NHWC"
            raise DataError("OP709", f"where does input {spec} have its channels?", where=_WHERE, hint=hint)
        axis = None
    if axis is not None and bytes_:
        complete, note = guess_recipe(spec.name, spec.shape, spec.dtype, recipe)
        return Fit(spec, len(shape), dtype, complete, axis, note=note)
    _refuse_geometry(recipe, spec)
    if axis is not None and not (recipe.channels is None and not recipe.has_values and spec.takes(shape)):
        complete, _ = guess_recipe(spec.name, spec.shape, spec.dtype, recipe)
        kept = Recipe(
            channels=complete.channels, scale=recipe.scale, mean=recipe.mean, std=recipe.std, layout=complete.layout
        )
        return Fit(spec, len(shape), dtype, kept, axis)
    return Fit(spec, len(shape), dtype, recipe, whole=whole)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Find where an array of images has its channels: last, first after the samples, or nowhere (0)."""
    if len(shape) == 3:
        return 0
    if len(shape) != 4:
        return None
    return 3 if shape[3] in _CHANNELS else 1 if shape[1] in _CHANNELS else None


def _refuse_geometry(recipe: Recipe, spec: InputSpec) -> None:
    if recipe.has_geometry:
        cause = f"input {spec} gets arrays that aren't images of 8 bits, and only those can be resized or cropped"
        raise DataError("OP709", cause, where=_WHERE)


def _cast(array: NDArray[Any], spec: InputSpec, where: str) -> Array:
    """Convert to the input's type without loss, except of a float's precision."""
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind not in "US":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(spec.dtype)
        if spec.dtype.kind not in "biu" or bool((array == cast).all()):
            return cast
    hint = f"convert it with array.astype({spec.dtype.name!r})"
    raise DataError("OP706", f"input {spec} doesn't take {array.dtype} values as they are", where=where, hint=hint)
