"""Opening data: from a path, a name, arrays or a function to samples that fit a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.data.archive import Archive
from onnxprune.data.arrays import ArraySource, archive_arrays, array_source, folder_arrays
from onnxprune.data.batch import Array, Source
from onnxprune.data.dataset import Data
from onnxprune.data.fit import Fit, fit
from onnxprune.data.functions import StreamSource, as_array
from onnxprune.data.images import Files, FolderFiles, ImageSource, class_labels, image_names
from onnxprune.data.inputs import InputSpec, inputs_of
from onnxprune.data.labels import with_labels
from onnxprune.data.noise import Sizes, digits_arrays, noise_arrays
from onnxprune.data.npy import map_npy
from onnxprune.data.pixels import decode
from onnxprune.data.ragged import FILL, RaggedSource, flattened, split_by_lengths
from onnxprune.data.recipe import Recipe
from onnxprune.data.records import SUFFIXES
from onnxprune.data.text import open_records
from onnxprune.data.usual import declared
from onnxprune.errors import DataError, OnnxPruneError
from onnxprune.runtime.functions import find_function, is_function_name
from onnxprune.settings.evaluation import TaskName, TaskSettings
from onnxprune.shapes import concretize
from onnxprune.shapes.inputs import declared_inputs
from onnxprune.shapes.result import fits as fits_at

Function = Callable[[], Iterable[Any]]
Spec = str | Path | Mapping[str, Array] | Function
Inputs = tuple[InputSpec, ...]
Opened = tuple[Source, tuple[Fit, ...], tuple[str, ...]]

_FORMS = (
    "give an .npz or .npy file, a folder of .npy files, a folder or .zip of images, a .txt, .jsonl or .csv file, "
    "module:function, digits, or random"
)
_NOISE = "the inputs are noise: results and repairs based on them hold only roughly for real inputs"
_SINGLE = "a size inside the model only fits one sample at a time, so samples run one by one"
_GIVEN = "the data given"
_IMAGES = (1, 1, 1, 3)  # only the rank and the channels matter


def open_data(
    spec: Spec,
    model: ModelProto,
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    seed: int = 0,
    labels: Any = None,
    reading: TaskSettings | None = None,
    tokenizer: str | Path | None = None,
    sizes: Sizes | None = None,
) -> Data:
    """Open data for a model, without reading them into memory.

    Args:
        spec: a path (.npz, .npy, a folder of .npy files, a folder or .zip of images, texts or lists of numbers in .txt,
            .jsonl, .csv or .tsv), "module:function", "digits", "digits:train", "digits:test", or "random" for noise; or
            arrays by name; or a function that yields batches.
        model: the model that the data are for.
        recipe: the preprocessing; missing keys are guessed, which `Data.notes` reports.
        limit: maximum number of samples, chosen at random; of a function, the first ones.
        seed: random seed of the choice.
        labels: labels in a file of their own, or an array; see `onnxprune.data.labels`.
        reading: what outputs and labels mean.
        tokenizer: the file tokenizer.json that makes inputs of texts.
        sizes: shapes of inputs or sizes of symbolic dimensions, for synthetic inputs.

    Raises:
        DataError: the data can't be read or don't fit the model (OP701 to OP710), or no samples are left (OP712).
        ModelError: the model runs on no synthetic inputs (OP122, OP124, OP125).
        UsageError: Pillow, scikit-learn or tokenizers is needed and isn't installed (OP605), or there is no tokenizer
            (OP604).
    """
    if limit is not None and limit < 1:
        raise DataError("OP712", f"a limit of {limit} leaves no samples")
    recipe = recipe or Recipe()
    inputs = inputs_of(model)
    if not inputs:
        raise DataError("OP706", "the model has no inputs to feed data to")
    source, fits, notes = _open(spec, model, inputs, recipe, limit, seed, tokenizer, sizes or {})
    if not _takes_batches(model, source, fits):
        fits, notes = tuple(map(_of_one, fits)), (*notes, _SINGLE)
    kind: TaskName | None = None
    ragged = source if isinstance(source, RaggedSource) else None
    if labels is not None:
        geometry = source.recipe if isinstance(source, ImageSource) else fits[0].recipe
        source, kind = with_labels(source, labels, geometry or recipe)
        notes = tuple(note for note in notes if "labels" not in note)
    chosen = None
    if limit is not None and not source.sequential and limit < len(source):
        chosen = np.sort(np.random.default_rng(seed).choice(len(source), limit, replace=False)).astype(np.int64)
    if ragged is not None and not ragged.padded:
        chosen = ragged.by_length(np.arange(len(source)) if chosen is None else chosen)
    if ragged is not None and recipe.ignore is None:
        recipe = replace(recipe, ignore=FILL)
    absent = [spec.name for spec in inputs if spec.state and spec not in [fit.spec for fit in fits]]
    zeros = [f"states that aren't in the data are zeros: {', '.join(absent)}"] if absent else []
    return Data(source, fits, recipe, chosen, (*notes, *zeros, *(fit.note for fit in fits if fit.note)), reading, kind)


def _open(
    spec: Spec,
    model: ModelProto,
    inputs: Inputs,
    recipe: Recipe,
    limit: int | None,
    seed: int,
    tokenizer: str | Path | None,
    sizes: Sizes,
) -> Opened:
    if isinstance(spec, Mapping):
        parts = {key: part for name, value in spec.items() for key, part in flattened(str(name), value).items()}
        given = {name: as_array(value, _GIVEN) for name, value in parts.items()}
        return _arrays(given, model, inputs, recipe, _GIVEN)
    if not isinstance(spec, str | Path):
        return _stream(getattr(spec, "__name__", _GIVEN), spec, model, inputs, recipe, limit)
    text, path = str(spec), Path(spec)
    if path.suffix in SUFFIXES and _exists(path) and not path.is_dir():
        records, notes = open_records(path, model, inputs, recipe, tokenizer)
        return records, _fits(records, model, inputs, recipe), notes
    if _exists(path):
        return _from_path(path, model, inputs, recipe)
    if text == "digits" or text.startswith("digits:"):
        return _arrays(digits_arrays(text), model, inputs, recipe, text)
    if text == "random":
        drawn = [spec for spec in inputs if not spec.state]
        source, fits, notes = _arrays(noise_arrays(model, drawn, sizes, limit, seed), model, inputs, recipe, text)
        return source, fits, (_NOISE, *notes)
    if is_function_name(text):
        return _stream(text, find_function(text), model, inputs, recipe, limit)
    raise DataError("OP701", "no such file, folder or function", where=text, hint=_FORMS)


def _from_path(path: Path, model: ModelProto, inputs: Inputs, recipe: Recipe) -> Opened:
    where = str(path)
    if path.is_dir():
        if arrays := folder_arrays(path):
            return _arrays(arrays, model, inputs, recipe, where)
        return _images(FolderFiles(path), model, inputs, recipe, where)
    if path.suffix == ".npy":
        return _arrays({"inputs": map_npy(path)}, model, inputs, recipe, where)
    if path.suffix in (".npz", ".zip"):
        archive = Archive(path)
        if arrays := archive_arrays(archive):
            return _arrays(arrays, model, inputs, recipe, where)
        return _images(archive, model, inputs, recipe, where)
    raise DataError("OP701", f"{path.suffix!r} files can't be read as data", where=where, hint=_FORMS)


def _arrays(arrays: Mapping[str, Array], model: ModelProto, inputs: Inputs, recipe: Recipe, where: str) -> Opened:
    label, ignore = recipe.label_field, recipe.ignore
    if (ragged := split_by_lengths(arrays, inputs, where, ignore=ignore, label=label)) is not None:
        unused = [f"not used: {', '.join(ragged.unused)}"] if ragged.unused else []
        return ragged, _fits(ragged, model, inputs, recipe), tuple(unused)
    source, notes = array_source(arrays, inputs, where, label)
    return source, _fits(source, model, inputs, recipe), notes


def _stream(
    name: str, function: Function, model: ModelProto, inputs: Inputs, recipe: Recipe, limit: int | None
) -> Opened:
    source = StreamSource(name, function, inputs, limit, recipe.label_field)
    return source, _fits(source, model, inputs, recipe), ()


def _images(files: Files, model: ModelProto, inputs: Inputs, recipe: Recipe, where: str) -> Opened:
    if len(inputs) > 1:
        cause = f"the model has {len(inputs)} inputs, and images feed only one"
        raise DataError("OP706", cause, where=where, hint="give arrays by input name (.npz)")
    names = image_names(files.members, where)
    labels, note = class_labels(files, names, recipe, classifies=_asked(recipe) or _may_classify(model))
    (spec,) = inputs
    images = fit(spec, _IMAGES, np.dtype(np.uint8), recipe, said=declared(model))
    if images.images is None:
        cause = f"the model's input {spec} doesn't take images"
        raise DataError("OP706", cause, where=where)
    source = ImageSource(files, names, labels, spec.name, partial(decode, images.recipe), images.recipe)
    # Files are decoded and resized one by one, so that batches of large images are never in memory.
    decoded = replace(images, recipe=replace(images.recipe, resize=None, crop=None))
    return source, (decoded,), (note,)


def _asked(recipe: Recipe) -> bool:
    """Whether the user says something of labels."""
    return recipe.labels != "auto" or recipe.classes is not None or recipe.label_offset != 0


def _may_classify(model: ModelProto) -> bool:
    """Whether an output may have a score for each class, or a single score: at most one axis is longer than one."""
    declared = {output.name: output.type.tensor_type for output in model.graph.output}
    shapes = {name: [d.dim_value or None for d in t.shape.dim] for name, t in declared.items() if t.HasField("shape")}
    if len(shapes) < len(declared) or any(None in shape[1:] for shape in shapes.values()):
        try:
            shapes = {name: list(concretize(model).shapes[name]) for name in declared}
        except (OnnxPruneError, KeyError):
            return True
    for shape in shapes.values():
        long = [axis for axis, size in enumerate(shape) if axis and size != 1]
        if len(long) < 2 and not (len(shape) == 3 and long == [1]):  # [n, anchors, 1] holds scores of boxes
            return True
    return False


def _fits(source: Source, model: ModelProto, inputs: Inputs, recipe: Recipe) -> tuple[Fit, ...]:
    """Choose the conversion to each input by the first sample."""
    first = next(source.batches(np.zeros(1, np.int64), 1))
    arrays = [(spec, first.inputs[spec.name]) for spec in inputs if spec.name in first.inputs]
    said = declared(model)
    return tuple(fit(s, a.shape, a.dtype, recipe, whole=first.whole or not a.ndim, said=said) for s, a in arrays)


def _takes_batches(model: ModelProto, source: Source, fits: Sequence[Fit]) -> bool:
    """Whether a model's shapes agree for two samples, if it doesn't declare that it takes one."""
    known = declared_inputs(model.graph)
    dims = {fit.spec.name: known.get(fit.spec.name) or () for fit in fits if not fit.whole}
    firsts = {own[0] for own in dims.values() if len(own) > 1}
    if not firsts or any(isinstance(first, int) for first in firsts):
        return True
    arrays = source.inputs if isinstance(source, ArraySource) else {}
    raw = {fit.spec.name for fit in fits if fit.images is None} & arrays.keys() & dims.keys()
    sizes: dict[str, Sequence[int] | int] = {name: (2, *arrays[name].shape[1:]) for name in raw}
    try:
        return fits_at(model, sizes | {str(first): 2 for first in firsts})
    except OnnxPruneError:  # arrays of other shapes, say, which the conversion tells
        return True


def _of_one(fit: Fit) -> Fit:
    """Return a conversion to an input that takes one sample."""
    shape = fit.spec.shape
    return fit if fit.whole or not shape else replace(fit, spec=replace(fit.spec, shape=(1, *shape[1:])))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def is_noise(samples: Any) -> bool:
    """Whether data are synthetic: the word for them, or what `open_data` made of it."""
    return (isinstance(samples, str) and samples == "random") or _NOISE in getattr(samples, "notes", ())
