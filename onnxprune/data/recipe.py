"""Preprocessing recipes: how raw data become model inputs, as a few validated keys."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from onnxprune.errors import DataError
from onnxprune.errors.words import did_you_mean

Size = tuple[int, int]
Channels = Literal["RGB", "BGR", "GRAY", "RGBA"]
Layout = Literal["NCHW", "NHWC"]
Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]

LABEL_ORIGINS = ("auto", "folder", "prefix", "none")
"""Where labels come from, other than from an array or field of a name."""

WHERE = "preprocessing recipe"
_MAX_SIDE = 1 << 15  # pixels
_MAX_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True)
class Recipe:
    """How raw data become model inputs. Keys that are None leave the data as they are, or are guessed from the model.

    Images are resized, then cropped; then their values become (x * scale - mean) / std.

    Attributes:
        resize: (height, width), or the length of the shorter side at the same aspect ratio.
        crop: (height, width) of the center crop.
        resample: the resize filter; all but "nearest" are antialiased when an image shrinks.
        channels: the model's channels, in order. Images are converted between gray and color.
        scale: a factor, applied first.
        mean: subtracted; one number, or one per channel in the order of `channels`.
        std: divided by, likewise.
        layout: the position of the model's channel axis.
        dtype: the type of the model's input.
        labels: where an image's label comes from: its "folder", the number that its file name begins with
            ("prefix": "0017_x.jpg"), or whichever is present ("auto"). Of other data, the name of the array, field or
            column of labels. "none" drops all labels, whatever the data.
        label_offset: added to a label to get the model's class: 1 if class 0 is a background.
        classes: class names in the model's order, for folders and labels that are names.
        ignore: the label of samples or positions that aren't evaluated.
        text: the field or column of texts, or the two of pairs.
        length: the largest number of tokens of a text; what is longer is cut.

    Raises:
        DataError: a value is invalid (OP709).
    """

    resize: int | Size | None = None
    crop: Size | None = None
    resample: Resample = "bilinear"
    channels: Channels | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None
    dtype: str | None = None
    labels: str = "auto"
    label_offset: int = 0
    classes: tuple[str, ...] | None = None
    ignore: int | None = None
    text: tuple[str, ...] | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for field in fields(self):
            value, key = getattr(self, field.name), _KEYS[field.name]
            if not (value is None and field.default is None) and not key.valid(value):
                raise DataError("OP709", f"{field.name} must be {key.rule}", where=WHERE)

    @property
    def label_field(self) -> str | None:
        """The name of the array, field or column of labels; None if none is named."""
        return None if self.labels in LABEL_ORIGINS else self.labels

    @property
    def has_values(self) -> bool:
        """Whether it changes values."""
        return any(v is not None for v in (self.scale, self.mean, self.std))

    @property
    def has_geometry(self) -> bool:
        """Whether it changes the size of images."""
        return self.resize is not None or self.crop is not None

    def __str__(self) -> str:
        """Return the text that `parse` reads, without keys at their defaults."""
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return " ".join(f"{name}={_write(name, value)}" for name, value, default in given if value != default)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse a recipe such as "resize=256 crop=224 scale=1/255 mean=0.485,0.456,0.406 layout=NCHW".

        Raises:
            DataError: a key is unknown, or a value can't be parsed (OP709).
        """
        table: dict[str, Any] = {}
        for part in text.split():
            key, equals, value = part.partition("=")
            if not equals:
                raise DataError("OP709", f"{part!r} is not of the form key=value", where=WHERE)
            if key in table:
                raise DataError("OP709", f"{key!r} is given twice", where=WHERE)
            table[key] = value
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Build a recipe from a TOML table; values may also be strings as `parse` reads them.

        Raises:
            DataError: a key is unknown, or a value can't be parsed (OP709).
        """
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in _KEYS:
                hint = did_you_mean(key, _KEYS) or f"keys: {', '.join(_KEYS)}"
                raise DataError("OP709", f"unknown key {key!r}", where=WHERE, hint=hint)
            try:
                values[key] = _KEYS[key].read(_items(value))
            except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
                raise DataError("OP709", f"can't read {key} = {value!r}", where=WHERE) from error
        return cls(**values)


def read_recipe(text: str) -> Recipe:
    """Read a recipe from its text, or from a TOML file (its table `preprocess`, or the whole file).

    Raises:
        DataError: the file can't be read, a key is unknown, or a value is invalid (OP709).
    """
    if not text.endswith(".toml"):
        return Recipe.parse(text)
    try:
        with Path(text).open("rb") as file:
            table = tomllib.load(file)
    except (OSError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        cause = getattr(error, "strerror", None) or str(error)
        raise DataError("OP709", f"can't read the recipe: {cause}", where=text) from error
    part = table.get("preprocess", table)
    if not isinstance(part, dict):
        raise DataError("OP709", "'preprocess' is not a table", where=text)
    return Recipe.from_table(part)


def merge(given: Recipe, guessed: Recipe) -> Recipe:
    """Fill keys that are at their defaults with those of another recipe."""
    rest = {f.name: getattr(guessed, f.name) for f in fields(given) if getattr(given, f.name) == f.default}
    return replace(given, **rest)


def _items(value: Any) -> list[str]:
    """Return a string, a number or a list of either as a list of strings."""
    if isinstance(value, bool | Mapping):
        raise TypeError(value)
    return [str(v) for v in value] if isinstance(value, list) else str(value).split(",")


def _one(items: list[str]) -> str:
    (item,) = items
    return item


def _fraction(item: str) -> float:
    above, slash, below = item.partition("/")
    return float(above) / float(below) if slash else float(above)


def _size(items: list[str]) -> int | Size:
    """Read "224", "224x320" (height x width) or [224, 320]."""
    sides = [int(n) for item in items for n in item.split("x")]
    if len(sides) == 1:
        return sides[0]
    height, width = sides
    return height, width


def _square(items: list[str]) -> Size:
    size = _size(items)
    return (size, size) if isinstance(size, int) else size


def _is_size(value: Any) -> bool:
    return _all(lambda n: isinstance(n, int) and 0 < n <= _MAX_SIDE, value) and len(value) == 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _is_factor(value: Any) -> bool:
    return _is_number(value) and value != 0


def _is_numeric(name: str) -> bool:
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def _all(test: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, tuple) and bool(values) and all(map(test, values))


def _are_names(values: Any) -> bool:
    return _all(lambda name: isinstance(name, str) and name != "", values) and len(set(values)) == len(values)


class _Key(NamedTuple):
    """How a key is parsed from strings, which values are valid, and what a message calls them."""

    read: Callable[[list[str]], Any]
    valid: Callable[[Any], bool]
    rule: str


def _choice(alias: Any, read: Callable[[list[str]], str] = _one) -> _Key:
    return _Key(read, get_args(alias).__contains__, f"one of {', '.join(get_args(alias))}")


_PIXELS = f"a size in pixels, from 1 to {_MAX_SIDE}, such as 224 or 224x320"
_INTEGER = _Key(lambda items: int(_one(items)), lambda value: isinstance(value, int), "an integer")

_KEYS: Mapping[str, _Key] = {
    "resize": _Key(_size, lambda v: _is_size((v, v) if isinstance(v, int) else v), _PIXELS),
    "crop": _Key(_square, _is_size, _PIXELS),
    "resample": _choice(Resample),
    "channels": _choice(Channels, lambda items: _one(items).upper()),
    "scale": _Key(lambda items: _fraction(_one(items)), _is_factor, "a number other than 0"),
    "mean": _Key(lambda items: tuple(map(_fraction, items)), lambda v: _all(_is_number, v), "one or more numbers"),
    "std": _Key(
        lambda items: tuple(map(_fraction, items)), lambda v: _all(_is_factor, v), "one or more numbers other than 0"
    ),
    "layout": _choice(Layout, lambda items: _one(items).upper()),
    "dtype": _Key(_one, _is_numeric, "a type of numbers, such as float32"),
    "labels": _Key(_one, lambda v: isinstance(v, str) and v != "", "auto, folder, prefix, none, or a name"),
    "label_offset": _INTEGER,
    "classes": _Key(tuple, _are_names, "a list of different names"),
    "ignore": _INTEGER,
    "text": _Key(tuple, lambda v: _are_names(v) and len(v) <= 2, "the name of a field, or two"),
    "length": _Key(
        lambda items: int(_one(items)),
        lambda v: isinstance(v, int) and 0 < v <= _MAX_TOKENS,
        f"a number of tokens, from 1 to {_MAX_TOKENS}",
    ),
}


def _write(name: str, value: Any) -> str:
    if name in ("resize", "crop") and isinstance(value, tuple):
        return "x".join(map(str, value))
    if name == "scale":
        inverse = f"{1 / value:g}"
        return f"1/{inverse}" if abs(value) < 1 and 1 / float(inverse) == value else repr(value).removesuffix(".0")
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
