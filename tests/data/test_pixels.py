from __future__ import annotations

import sys

import numpy as np
import pytest

from onnxprune.data.pixels import arithmetic, decode, reshape_images, values
from onnxprune.data.recipe import Recipe
from onnxprune.errors import UsageError
from tests.data.support import encode, huge_png, picture, refused

F32 = np.dtype(np.float32)


def test_a_lossless_image_comes_back_as_it_was() -> None:
    pixels = picture(0, 5, 7)
    np.testing.assert_array_equal(decode(Recipe(), encode(pixels), "a"), pixels)
    for form in ("BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(Recipe(), encode(pixels, form), "a"), pixels)


def test_channels_are_converted() -> None:
    pixels = picture(1, 4, 4)
    gray = decode(Recipe(channels="GRAY"), encode(pixels), "a")
    luma = pixels @ [0.299, 0.587, 0.114]  # ITU-R 601, as Pillow has it in fixed point
    assert gray.shape == (4, 4, 1) and np.abs(gray[..., 0] - luma).max() <= 1
    color = decode(Recipe(channels="RGB"), encode(picture(1, 4, 4, 1)), "a")
    np.testing.assert_array_equal(color, np.repeat(picture(1, 4, 4, 1), 3, axis=-1))
    assert decode(Recipe(channels="RGBA"), encode(pixels), "a")[..., 3].min() == 255


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((40, 60), 20, (20, 30)),
        ((60, 40), 20, (30, 20)),
        ((33, 50), 16, (16, 24)),
        ((40, 60), (7, 9), (7, 9)),
        ((40, 60), 40, (40, 60)),
    ],
)
def test_a_single_number_is_the_shorter_side(
    size: tuple[int, int], resize: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    assert decode(Recipe(resize=resize), encode(picture(0, *size)), "a").shape == (*expected, 3)


def test_box_resizing_by_half_is_the_mean_of_four() -> None:
    pixels = picture(2, 8, 8)
    half = decode(Recipe(resize=4, resample="box"), encode(pixels), "a")
    means = pixels.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 1  # rounded twice: along rows, then along columns


def test_crop_takes_the_center() -> None:
    pixels = picture(3, 10, 11)
    np.testing.assert_array_equal(decode(Recipe(crop=(4, 5)), encode(pixels), "a"), pixels[3:7, 3:8])
    with refused("OP705", "10x11 pixels are left to crop 12x5"):
        decode(Recipe(crop=(12, 5)), encode(pixels), "a")


def test_values_are_scaled_shifted_and_laid_out() -> None:
    images = np.stack([picture(4), picture(5)])
    recipe = Recipe(channels="BGR", scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), layout="NCHW")
    result = values(images, recipe, F32)
    assert result.dtype == np.float32 and result.shape == (2, 3, 8, 8) and result.flags.c_contiguous
    for n, y, x, c in np.ndindex(2, 8, 8, 3):
        expected = (images[n, y, x, 2 - c] / 255 - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c]
        assert result[n, c, y, x] == pytest.approx(expected, abs=1e-6)


def test_integers_are_rounded_and_doubles_kept_double() -> None:
    image = np.array([[[[0, 127, 255]]]], np.uint8)
    np.testing.assert_array_equal(arithmetic(image, Recipe(scale=0.5), np.dtype(np.int8)).ravel(), [0, 64, 128])
    assert arithmetic(image, Recipe(scale=1 / 255), np.dtype(np.float64)).dtype == np.float64
    assert arithmetic(image, Recipe(), F32) is image


def test_as_many_means_as_channels() -> None:
    with refused("OP709", "mean has 2 numbers for 3 channels"):
        arithmetic(picture(0)[None], Recipe(mean=(1.0, 2.0)), F32)


def test_decoded_arrays_take_the_same_way_as_files() -> None:
    recipe = Recipe(resize=6, crop=(4, 4), channels="GRAY", resample="bicubic")
    images = np.stack([picture(6, 9, 12), picture(7, 9, 12)])
    expected = np.stack([decode(recipe, encode(image), "a") for image in images])
    np.testing.assert_array_equal(reshape_images(images, recipe, "a"), expected)
    gray = picture(8, 9, 12, 1)[None]
    assert reshape_images(gray, Recipe(channels="RGB"), "a").shape == (1, 9, 12, 3)
    assert reshape_images(images, Recipe(), "a") is images


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", encode(picture(0, 64, 64))[:-200], encode(picture(0, 64, 64), "JPEG")[:300], b"GIF89a"],
    ids=["empty", "text", "cut png", "cut jpeg", "cut gif"],
)
def test_what_cannot_be_decoded_is_named(content: bytes) -> None:
    with refused("OP705", "photos/7.png"):
        decode(Recipe(), content, "photos/7.png")


@pytest.mark.parametrize("side", [10_000, 60_000], ids=["warning", "error"])
def test_decompression_bombs_are_refused(side: int) -> None:
    with refused("OP705", "more than 89,478,485 pixels.*bomb.png"):
        decode(Recipe(), huge_png(side, side), "bomb.png")


def test_deep_images_are_refused_rather_than_flattened() -> None:
    with refused("OP705", "more than 8 bits"):
        decode(Recipe(), encode(np.arange(64, dtype=np.uint16).reshape(8, 8, 1)), "deep.png")


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"(?s)OP605.*onnxprune\[data\]"):
        decode(Recipe(), b"", "a")


def test_images_of_the_right_size_need_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    images = np.stack([picture(i) for i in range(2)])
    for text in ("", "resize=8", "resize=8x8 crop=8", "crop=8x8"):
        assert reshape_images(images, Recipe.parse(text), "here") is images
    for text in ("resize=9", "crop=7", "channels=GRAY"):
        with pytest.raises(UsageError, match="Pillow"):
            reshape_images(images, Recipe.parse(text), "here")
