"""Preprocessing recipes: how raw data become a model's inputs, stated in a few checked keys."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.errors import DataError

Size = tuple[int, int]
Channels = Literal["RGB", "BGR", "GRAY", "RGBA"]
Layout = Literal["NCHW", "NHWC"]
Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
LabelOrigin = Literal["auto", "folder", "prefix", "none"]

_CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "resample": ("nearest", "box", "bilinear", "bicubic", "lanczos"),
    "channels": (None, "RGB", "BGR", "GRAY", "RGBA"),
    "layout": (None, "NCHW", "NHWC"),
    "labels": ("auto", "folder", "prefix", "none"),
}
_LARGEST = 1 << 15  # pixels of a side
_SIZE = f"is a size in pixels, from 1 to {_LARGEST}, such as 224 or 224x320"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How raw data become a model's inputs; what is None is left as it is, or guessed from the model.

    Images are resized, then cropped, then their values become (x * scale - mean) / std.

    Attributes:
        resize: (height, width), or the length of the shorter side, the aspect kept.
        crop: (height, width) of the part taken from the center.
        resample: the filter of resizing; all but "nearest" are widened when an image shrinks.
        channels: what the model's channels are, in order. Gray images become color and the reverse.
        scale: a factor, applied first.
        mean: what is subtracted, a number for all channels or one for each, in the order of `channels`.
        std: what is divided by, likewise.
        layout: where the model has its channels.
        dtype: the type of the model's input.
        labels: where an image's label comes from: its folder, the number that its file's name begins with
            ("0017_x.jpg"), or whichever of these there is. With "none" there are no labels, whatever the data.
        label_offset: what is added to a label to give the model's class: 1 where class 0 is a background.
        classes: names of the classes in the model's order, for folders and labels that are names.
        ignore: the label of what isn't to be judged.

    Raises:
        DataError: a value is impossible (OP709).
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
    labels: LabelOrigin = "auto"
    label_offset: int = 0
    classes: tuple[str, ...] | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, choices in _CHOICES.items():
            _check(getattr(self, name) in choices, name, f"is one of {', '.join(filter(None, choices))}")
        side = isinstance(self.resize, int) and _is_size((self.resize, self.resize))
        _check(side or self.resize is None or _is_size(self.resize), "resize", _SIZE)
        _check(self.crop is None or _is_size(self.crop), "crop", _SIZE)
        _check(self.scale is None or _is_factor(self.scale), "scale", "is a number other than 0")
        _check(self.mean is None or _all(_is_number, self.mean), "mean", "is one or more numbers")
        _check(self.std is None or _all(_is_factor, self.std), "std", "is one or more numbers other than 0")
        _check(self.dtype is None or _is_numeric(self.dtype), "dtype", "is a type of numbers, such as float32")
        _check(isinstance(self.label_offset, int), "label_offset", "is a whole number")
        _check(self.ignore is None or isinstance(self.ignore, int), "ignore", "is a whole number")
        names = self.classes is None or (_all(_is_name, self.classes) and len(set(self.classes)) == len(self.classes))
        _check(names, "classes", "is a list of different names")

    @property
    def has_values(self) -> bool:
        """Whether it says what becomes of values."""
        return any(v is not None for v in (self.scale, self.mean, self.std))

    @property
    def has_geometry(self) -> bool:
        """Whether it says what becomes of an image's size."""
        return self.resize is not None or self.crop is not None

    def __str__(self) -> str:
        """Write the recipe as `parse` reads it, without what is left at its default."""
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return " ".join(f"{name}={_write(name, value)}" for name, value, default in given if value != default)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe such as "resize=256 crop=224 scale=1/255 mean=0.485,0.456,0.406 layout=NCHW".

        Raises:
            DataError: a key is unknown or a value can't be read (OP709).
        """
        table: dict[str, Any] = {}
        for part in text.split():
            key, equals, value = part.partition("=")
            if not equals:
                raise DataError("OP709", f"{part!r} is not of the form key=value", where="preprocessing recipe")
            if key in table:
                raise DataError("OP709", f"{key!r} is given twice", where="preprocessing recipe")
            table[key] = value
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Make a recipe of a TOML table; values may also be written as `parse` reads them.

        Raises:
            DataError: a key is unknown or a value can't be read (OP709).
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise DataError("OP709", f"unknown key {key!r}", where="preprocessing recipe", hint=hint)
            try:
                values[key] = _READERS.get(key, _one)(_items(value))
            except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
                raise DataError("OP709", f"can't read {key} = {value!r}", where="preprocessing recipe") from error
        return cls(**values)


def read_recipe(text: str) -> Recipe:
    """Read a recipe from its text, or from a TOML file (its table `preprocess`, or all of it).

    Raises:
        DataError: the file can't be read, a key is unknown or a value impossible (OP709).
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
    """Complete a recipe by what another one says of keys that it leaves at their defaults."""
    rest = {f.name: getattr(guessed, f.name) for f in fields(given) if getattr(given, f.name) == f.default}
    return replace(given, **rest)


def _check(fits: bool, name: str, rule: str) -> None:
    if not fits:
        raise DataError("OP709", f"{name} {rule}", where="preprocessing recipe")


def _all(test: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, tuple) and bool(values) and all(map(test, values))


def _is_size(value: Any) -> bool:
    return _all(lambda n: isinstance(n, int) and 0 < n <= _LARGEST, value) and len(value) == 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _is_factor(value: Any) -> bool:
    return _is_number(value) and value != 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_numeric(name: str) -> bool:
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def _items(value: Any) -> list[str]:
    """Bring a value to a list of texts, whether it was text, a number or a list of them."""
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


_READERS: Mapping[str, Callable[[list[str]], Any]] = {
    "resize": _size,
    "crop": _square,
    "channels": lambda items: _one(items).upper().replace("GRAY", "GRAY"),
    "layout": lambda items: _one(items).upper(),
    "scale": lambda items: _fraction(_one(items)),
    "mean": lambda items: tuple(map(_fraction, items)),
    "std": lambda items: tuple(map(_fraction, items)),
    "label_offset": lambda items: int(_one(items)),
    "ignore": lambda items: int(_one(items)),
    "classes": tuple,
}


def _write(name: str, value: Any) -> str:
    if name in ("resize", "crop") and isinstance(value, tuple):
        return "x".join(map(str, value))
    if name == "scale":
        inverse = f"{1 / value:g}"
        return f"1/{inverse}" if abs(value) < 1 and 1 / float(inverse) == value else repr(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
