"""From what the user names to data that fit a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.data.archive import Archive
from onnxprune.data.arrays import archive_arrays, array_source, folder_arrays
from onnxprune.data.batch import Array, Source
from onnxprune.data.dataset import Data, check_limit, choose
from onnxprune.data.fit import Fit, fit
from onnxprune.data.functions import find_function, is_function_name
from onnxprune.data.images import Files, FolderFiles, ImageSource, ZipFiles, class_labels
from onnxprune.data.noise import digits_arrays, noise_arrays
from onnxprune.data.npy import map_npy
from onnxprune.data.pixels import decode
from onnxprune.data.ports import InputSpec, inputs_of
from onnxprune.data.recipe import Recipe
from onnxprune.data.stream import StreamSource, as_array
from onnxprune.errors import DataError

Function = Callable[[], Iterable[Any]]
Spec = str | Path | Mapping[str, Array] | Function
Inputs = tuple[InputSpec, ...]
Opened = tuple[Source, tuple[Fit, ...], tuple[str, ...]]

_FORMS = (
    "give an .npz or .npy file, a folder of .npy files, a folder or .zip of images, module:function, digits, or random"
)
_NOISE = "the inputs are noise: what is measured and repaired on them holds for real ones only roughly"
_GIVEN = "the data given"
_IMAGES = (1, 1, 1, 3)  # of which only the rank and the channels matter


def open_data(
    spec: Spec,
    model: ModelProto,
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Open data for a model; nothing is read whole.

    Args:
        spec: a path (.npz, .npy, a folder of .npy files, a folder or .zip of images), "module:function", "digits",
            "digits:train" or "digits:test"; or "random" for noise; or arrays by name; or a function that gives batches.
        model: the model that the data are for.
        recipe: how they are preprocessed; what it leaves open is guessed, and said in `Data.notes`.
        limit: take so many samples, chosen at random; of a function, the first ones.
        seed: seed of the choice.

    Raises:
        DataError: the data can't be read or don't fit the model (OP701 to OP710), or no samples are left (OP712).
        UsageError: Pillow or scikit-learn is needed and isn't installed (OP605).
    """
    check_limit(limit)
    recipe = recipe or Recipe()
    inputs = inputs_of(model)
    if not inputs:
        raise DataError("OP706", "the model has no inputs, so that data can't change what it gives")
    source, fits, notes = _open(spec, inputs, recipe, limit, seed)
    chosen = None if source.sequential else choose(len(source), limit, seed)
    return Data(source, fits, recipe, chosen, (*notes, *(fit.note for fit in fits if fit.note)))


def _open(spec: Spec, inputs: Inputs, recipe: Recipe, limit: int | None, seed: int) -> Opened:
    if isinstance(spec, Mapping):
        given = {str(name): as_array(value, _GIVEN) for name, value in spec.items()}
        return _arrays(given, inputs, recipe, _GIVEN)
    if not isinstance(spec, str | Path):
        return _stream(getattr(spec, "__name__", _GIVEN), spec, inputs, recipe, limit)
    text, path = str(spec), Path(spec)
    if _exists(path):
        return _from_path(path, inputs, recipe)
    if text == "digits" or text.startswith("digits:"):
        return _arrays(digits_arrays(text), inputs, recipe, text)
    if text == "random":
        source, fits, notes = _arrays(noise_arrays(inputs, limit, seed), inputs, recipe, text)
        return source, fits, (_NOISE, *notes)
    if is_function_name(text):
        return _stream(text, find_function(text), inputs, recipe, limit)
    raise DataError("OP701", "there is no such file, folder or function", where=text, hint=_FORMS)


def _from_path(path: Path, inputs: Inputs, recipe: Recipe) -> Opened:
    where = str(path)
    if path.is_dir():
        if arrays := folder_arrays(path):
            return _arrays(arrays, inputs, recipe, where)
        return _images(FolderFiles(path), inputs, recipe, where)
    if path.suffix == ".npy":
        return _arrays({"inputs": map_npy(path)}, inputs, recipe, where)
    if path.suffix in (".npz", ".zip"):
        archive = Archive(path)
        if arrays := archive_arrays(archive):
            return _arrays(arrays, inputs, recipe, where)
        return _images(ZipFiles(archive), inputs, recipe, where)
    raise DataError("OP701", f"files of the kind {path.suffix!r} aren't read as data", where=where, hint=_FORMS)


def _arrays(arrays: Mapping[str, Array], inputs: Inputs, recipe: Recipe, where: str) -> Opened:
    source, notes = array_source(arrays, inputs, where)
    return source, _fits(source, inputs, recipe), notes


def _stream(name: str, function: Function, inputs: Inputs, recipe: Recipe, limit: int | None) -> Opened:
    source = StreamSource(name, function, inputs, limit)
    return source, _fits(source, inputs, recipe), ()


def _images(files: Files, inputs: Inputs, recipe: Recipe, where: str) -> Opened:
    if len(inputs) > 1:
        cause = f"the model has {len(inputs)} inputs, and images are for one"
        raise DataError("OP706", cause, where=where, hint="give arrays by the inputs' names (.npz)")
    labels, note = class_labels(files, recipe, where)
    (spec,) = inputs
    images = fit(spec, _IMAGES, np.dtype(np.uint8), recipe)
    if images.images is None:
        cause = f"the model's input {spec} doesn't take images"
        raise DataError("OP706", cause, where=where)
    source = ImageSource(files, labels, spec.name, partial(decode, images.recipe))
    # Files are decoded to their final size one by one, so that no batch of large ones is ever in memory.
    decoded = replace(images, recipe=replace(images.recipe, resize=None, crop=None))
    return source, (decoded,), (note,)


def _fits(source: Source, inputs: Inputs, recipe: Recipe) -> tuple[Fit, ...]:
    """Decide by the first sample what brings arrays to their inputs."""
    first = next(source.batches(np.zeros(1, np.int64), 1))
    arrays = [(spec, first.inputs[spec.name]) for spec in inputs]
    return tuple(fit(s, a.shape, a.dtype, recipe, whole=first.whole or not a.ndim) for s, a in arrays)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False
