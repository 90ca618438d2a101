"""Decoding of image files, and the conversion of pixels to model inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.recipe import WHERE, Recipe, Size
from onnxprune.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes of image files."""

_MODES: Mapping[str | None, str] = {None: "RGB", "RGB": "RGB", "BGR": "RGB", "GRAY": "L", "RGBA": "RGBA"}
_DEEP = ("I", "F")  # prefixes of Pillow's modes with more than 8 bits


def decode(recipe: Recipe, content: bytes, where: str) -> Pixels:
    """Decode an image file and convert it to the recipe's channels and size.

    Args:
        recipe: the preprocessing; its values aren't applied.
        content: the file's bytes.
        where: the file's name, for messages.

    Returns:
        Pixels, [height, width, channels].

    Raises:
        DataError: it can't be decoded, or is smaller than the crop (OP705).
        UsageError: Pillow isn't installed (OP605).
    """
    return _decoded(content, where, lambda image: _prepare(image, recipe, where))


def decode_mask(recipe: Recipe, content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an image whose values are classes, at the size that the recipe gives images.

    Args:
        recipe: the preprocessing of the images that the masks are for; only its geometry applies.
        content: the file's bytes: gray, black and white, or with a palette whose indices are the classes.
        where: the file's name, for messages.

    Returns:
        Classes, [height, width].

    Raises:
        DataError: it can't be decoded, is in color, or is smaller than the crop (OP705).
        UsageError: Pillow isn't installed (OP605).
    """

    def prepare(image: Image) -> Pixels:
        if image.mode not in ("1", "L", "P"):
            cause = f"a mask has one channel of classes, and this image has mode {image.mode}"
            raise DataError("OP705", cause, where=where)
        classes = _pillow().fromarray(np.asarray(image).astype(np.uint8))
        return _prepare(classes, replace(recipe, channels="GRAY", resample="nearest"), where)

    return _decoded(content, where, prepare)[..., 0]


def placed(points: NDArray[np.float64], size: Size, recipe: Recipe) -> NDArray[np.float64]:
    """Return where points (x, y) of an image lie once it is resized and cropped; those outside move to its edge.

    Args:
        points: [n, 2], in pixels.
        size: height and width of the image.
        recipe: the preprocessing.
    """
    target = size if recipe.resize is None else _target(size, recipe.resize)
    moved = points * [target[1] / size[1], target[0] / size[0]]
    if recipe.crop is not None:
        height, width = recipe.crop
        moved = moved - [round((target[1] - width) / 2), round((target[0] - height) / 2)]
        target = height, width
    return np.clip(moved, 0, [target[1], target[0]])


def _decoded(content: bytes, where: str, prepare: Callable[[Image], Pixels]) -> Pixels:
    """Decode an image file and prepare it.

    Raises:
        DataError: it can't be decoded (OP705).
        UsageError: Pillow isn't installed (OP605).
    """
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            image = pillow.open(BytesIO(content), formats=_FORMATS)
            if image.mode.startswith(_DEEP):
                cause = f"the image has more than 8 bits for a pixel (mode {image.mode})"
                raise DataError("OP705", cause, where=where, hint="convert it to 8 bits, or give arrays (.npz)")
            return prepare(image)
    except DataError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        cause = f"the image has more than {pillow.MAX_IMAGE_PIXELS:,} pixels"
        raise DataError("OP705", cause, where=where) from error
    except Exception as error:  # Pillow's plugins raise many types of errors on damaged files
        cause = f"the image can't be decoded ({type(error).__name__})"
        raise DataError("OP705", cause, where=where, hint="repair or remove the file") from error


def reshape_images(images: Pixels, recipe: Recipe, where: str) -> Pixels:
    """Convert decoded images [n, height, width, channels] to the recipe's channels and size.

    Raises:
        DataError: they are smaller than the crop (OP705).
        UsageError: Pillow is needed and isn't installed (OP605).
    """
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[_MODES[recipe.channels]]
    size = images.shape[1], images.shape[2]
    target = size if recipe.resize is None else _target(size, recipe.resize)
    if target == size and recipe.crop in (None, size) and images.shape[3] == channels:
        return images  # without Pillow
    pillow = _pillow()
    squeezed = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([_prepare(pillow.fromarray(np.ascontiguousarray(i)), recipe, where) for i in squeezed])


def values(images: NDArray[Any], recipe: Recipe, dtype: np.dtype) -> NDArray[Any]:
    """Return (x * scale - mean) / std of images [n, height, width, channels], in the model's layout.

    Args:
        images: pixels in RGB order, or other numbers.
        recipe: the preprocessing.
        dtype: the type of the model's input; computed in float64 for float64, else in float32.
    """
    if recipe.channels == "BGR":
        images = images[..., ::-1]
    scaled = arithmetic(images, recipe, dtype)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)) if recipe.layout == "NCHW" else scaled


def arithmetic(array: NDArray[Any], recipe: Recipe, dtype: np.dtype) -> NDArray[Any]:
    """Return (x * scale - mean) / std, with channels along the last axis; the array itself if none is given.

    Raises:
        DataError: the number of means or deviations is neither 1 nor that of the channels (OP709).
    """
    if not recipe.has_values:
        return array
    for name, numbers in (("mean", recipe.mean), ("std", recipe.std)):
        if numbers is not None and len(numbers) not in (1, *array.shape[-1:]):
            cause = f"{name} has {len(numbers)} numbers for {array.shape[-1] if array.ndim else 1} channels"
            raise DataError("OP709", cause, where=WHERE)
    precision = np.float64 if dtype == np.float64 else np.float32
    result: NDArray[Any] = array.astype(precision)
    if recipe.scale is not None:
        result *= precision(recipe.scale)
    if recipe.mean is not None:
        result -= np.array(recipe.mean, precision)
    if recipe.std is not None:
        result /= np.array(recipe.std, precision)
    return result if dtype.kind not in "iu" else np.rint(result)


def _prepare(image: Image, recipe: Recipe, where: str) -> Pixels:
    image = image.convert(_MODES[recipe.channels])
    if recipe.resize is not None:
        size = _target((image.height, image.width), recipe.resize)
        if size != (image.height, image.width):
            image = image.resize(size[::-1], _pillow().Resampling[recipe.resample.upper()])
    if recipe.crop is not None:
        height, width = recipe.crop
        top, left = (image.height - height) / 2, (image.width - width) / 2
        if top < 0 or left < 0:
            cause = f"{image.height}x{image.width} pixels are left to crop {height}x{width} from"
            raise DataError("OP705", cause, where=where, hint="add resize=")
        corner = round(left), round(top)
        image = image.crop((*corner, corner[0] + width, corner[1] + height))
    pixels = np.asarray(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _target(size: Size, resize: int | Size) -> Size:
    """Return the size to resize to; a single number is the length of the shorter side."""
    if not isinstance(resize, int):
        return resize
    height, width = size
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        cause = "images need Pillow, which isn't installed"
        raise UsageError("OP605", cause, hint="pip install 'onnxprune[data]'") from error
    return Image
