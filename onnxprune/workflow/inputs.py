"""Conversion of user input to what the workflow needs: data, batches, transformed models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from onnx import ModelProto

from onnxprune.data import Data, Dataset, Recipe, fixed_batch, inputs_of, open_data, read_recipe
from onnxprune.data.text import TOKENIZER
from onnxprune.errors import DataError, PlanError
from onnxprune.evaluation.preprocessing import suited
from onnxprune.model.file import Model, Source, load
from onnxprune.model.states import fitted, state_inputs
from onnxprune.model.stream import Batches, Inputs
from onnxprune.normalize import normalize
from onnxprune.progress import Progress, silent
from onnxprune.runtime.functions import find_function, guarded
from onnxprune.settings import DataSettings
from onnxprune.settings.pruning import LIMIT
from onnxprune.shapes import Shapes
from onnxprune.shapes.batch import free_batch
from onnxprune.shapes.runnable import operators
from onnxprune.trace import ChannelGraph

log = logging.getLogger(__name__)

_BATCH = 32
_JUDGED = 2000  # largest number of samples that judge a result

Samples = Any
"""Inputs: what `open_data` takes, a `Dataset`, or a function that returns batches of inputs."""


def open_samples(
    settings: DataSettings,
    model: Source | ChannelGraph,
    *,
    seed: int,
    limit: int | None = None,
    input_shapes: Mapping[str, Sequence[int] | int] | None = None,
    near: Path | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Open data for a model, log the assumptions made, and replace a guess of the preprocessing by what suits best.

    Args:
        settings: the data, and how they are read.
        model: the model, perhaps traced: synthetic inputs have the sizes that it was traced at.
        seed: random seed of the choice of samples.
        limit: default number of samples; None for all.
        input_shapes: shapes of synthetic inputs, by input, or sizes of symbolic dimensions, by theirs.
        near: the model's file, if the model is traced or changed: a tokenizer beside it makes inputs of texts.
        progress: called while ways of preprocessing are tried.

    Raises:
        DataError: the data can't be read or don't fit the model.
        ModelError: the model runs on no synthetic inputs (OP122, OP125).
        PlanError: sizes are given for inputs that aren't synthetic (OP302).
    """
    if input_shapes and settings.data != "random":
        cause = "`input_shapes` sets the sizes of synthetic inputs, and data have sizes of their own"
        raise PlanError("OP302", cause, hint="drop it, or set `data` to random")
    progress("open the data", 0, None)
    found = _opened(settings, model, seed, settings.limit or limit, input_shapes, near)
    why = None
    if isinstance(found, Data) and settings.data != "random":
        proto = model.proto if isinstance(model, ChannelGraph) else load(model).proto
        found, why = suited(proto, found, seed=seed, progress=progress)
    for note in getattr(found, "notes", ()) if opens(settings) else ():  # said when they were opened
        if why is not None and note == str(why):
            log.warning("%s", note)
        else:
            log.info("note: %s", note)
    return found


def open_all(
    settings: DataSettings, graph: ChannelGraph, *, seed: int, near: Path | None, progress: Progress = silent
) -> Dataset:
    """Open all samples, see `open_samples`; synthetic ones in the number that is set."""
    whole = settings if settings.data == "random" else replace(settings, limit=None)
    return open_samples(whole, graph, near=near, seed=seed, progress=progress)


def divided(data: Dataset, seed: int, *parts: tuple[float, int]) -> tuple[Dataset, ...]:
    """Divide samples at random into parts to work with and a last one that judges the result.

    Args:
        data: the samples.
        seed: random seed.
        *parts: of each part the share of all samples, and its largest number of them.

    Raises:
        DataError: there are too few (OP712).
    """
    order = np.random.default_rng(seed).permutation(len(data))
    sizes = [min(int(share * len(order)), most) for share, most in parts]
    if not all(sizes):
        least = max(ceil(1 / share) for share, _ in parts)
        cause = f"{len(order)} samples can't be worked with and judge the result as well: {least} is the least"
        raise DataError("OP712", cause)
    *found, _ = np.split(order, np.cumsum([*sizes, _JUDGED]))
    return tuple(data.subset(np.sort(part)) for part in found)


def as_opened(settings: DataSettings, data: Dataset) -> DataSettings:
    """Return settings with the preprocessing that data were opened with, so that other data are read alike."""
    return replace(settings, preprocess=data.recipe) if isinstance(data, Data) else settings


def opens(settings: DataSettings | None) -> bool:
    """Whether settings name data that are still to be opened."""
    return settings is not None and settings.data is not None and not hasattr(settings.data, "batches")


def first_inputs(settings: DataSettings, model: Source) -> Inputs | None:
    """Return the inputs of the first sample of data, or of the first samples of a fixed number; None without any data.

    Synthetic inputs don't count: they have the sizes that the model is given.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    if settings.data is None or settings.data == "random":
        return None
    return next((batch.inputs for batch in _opened(replace(settings, labels=None), model, 0, None).batches(1)), None)


def _opened(
    settings: DataSettings,
    model: Source | ChannelGraph,
    seed: int,
    limit: int | None,
    sizes: Mapping[str, Sequence[int] | int] | None = None,
    near: Path | None = None,
) -> Dataset:
    spec, recipe = settings.data, settings.preprocess
    if hasattr(spec, "batches"):
        return _at_most(cast(Dataset, spec), settings.limit, seed)  # a default is for what isn't chosen yet
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    if isinstance(model, ChannelGraph):
        proto, sizes = model.proto, model.shapes.inputs
    else:
        loaded = load(model)
        proto, near = loaded.proto, near or loaded.path
    beside = None if near is None else near.with_name(TOKENIZER)
    tokenizer = settings.tokenizer or (beside if beside is not None and beside.is_file() else None)
    reading = {"labels": settings.labels, "reading": settings.reading, "tokenizer": tokenizer}
    return open_data(spec, proto, recipe=recipe, limit=limit, seed=seed, sizes=sizes, **reading)


def _at_most(data: Dataset, limit: int | None, seed: int) -> Dataset:
    """Return samples that are opened already, no more than a number of them, chosen at random; streams are whole."""
    if limit is None or data.known_length is None or data.known_length <= limit:
        return data
    return data.subset(np.sort(np.random.default_rng(seed).choice(data.known_length, limit, replace=False)))


def batches_of(samples: Samples, graph: ChannelGraph, *, seed: int = 0) -> Batches | None:
    """Return a function that yields calibration inputs in batches; None if there are no samples.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    opened = dataset_of(samples, graph, seed=seed)
    return cast("Batches | None", samples) if opened is None else calibration_batches(opened, graph.proto)


def dataset_of(samples: Samples, graph: ChannelGraph, *, seed: int = 0) -> Dataset | None:
    """Return calibration samples, opened; None if there are none, or only a function that returns batches.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    if samples is None or (callable(samples) and not hasattr(samples, "batches")):
        return None
    return open_samples(DataSettings(data=samples), graph, seed=seed, limit=LIMIT)


def calibration_batches(opened: Dataset, model: Source, size: int = _BATCH) -> Batches:
    """Return a function that yields the inputs of samples in batches of a size."""
    states = state_inputs(load(model).proto)

    def again() -> Iterable[Inputs]:
        return (fitted(states, batch.inputs, batch.count) for batch in opened.batches(size))

    return again


def batch_within(shapes: Shapes, limit: int) -> int:
    """Return how many samples can run at once while all tensors together hold at most some numbers; at least 1.

    Args:
        shapes: those of one sample.
        limit: how many numbers.
    """
    return max(1, min(_BATCH, limit // max(1, sum(map(prod, shapes.shapes.values())))))


_FREED = "note: the batch size is fixed at 1 in the file; samples run together nevertheless, with the same results"


def in_batches(model: Model, other: Model | None = None) -> tuple[Model, Model | None]:
    """Return models that take any number of samples at once, if a batch size is fixed at 1 and all can.

    Otherwise they are returned as they are. `onnxprune.shapes.batch.fix_batch` undoes it.
    """
    models = [model] if other is None else [model, other]
    if all(fixed_batch(inputs_of(m.proto)) is None for m in models):
        return model, other
    found = [replace(m, proto=_free(normalize(m.proto))) for m in models]
    if any(fixed_batch(inputs_of(m.proto)) is not None for m in found):
        return model, other
    log.info(_FREED)
    return found[0], found[-1] if len(found) > 1 else None


def freed(proto: ModelProto) -> ModelProto:
    """Return a normalized model that takes any number of samples at once, if its batch size is fixed at 1 and it can.

    Raises:
        DataError: an input isn't a tensor of numbers (OP706).
    """
    found = _free(proto)
    if found is not proto:
        log.info(_FREED)
    return found


def _free(proto: ModelProto) -> ModelProto:
    return (free_batch(proto) if fixed_batch(inputs_of(proto)) == 1 else None) or proto


def tell_of_front(graph: ChannelGraph) -> None:
    """Log that data can be run through a part of the model only, if so."""
    if graph.front is not None and graph.front.outputs:
        ends = ", ".join(graph.front.outputs)
        what = "ONNX Runtime's CPU provider can't run %s: data are run through the part in front, up to %s"
        log.warning(what, operators(graph.front.missing), ends)


def transformed(source: Source, transform: str | Callable[[Any], Any]) -> Model:
    """Pass a model through a function on onnx-graphsurgeon graphs.

    Args:
        source: the model.
        transform: the function, or "module:function". It returns a graph, or modifies its argument.

    Raises:
        DataError: the function can't be imported, fails, or returns something else (OP710).
        ModelError: the model or the result isn't valid.
    """
    import onnx_graphsurgeon as gs

    function = find_function(transform) if isinstance(transform, str) else transform
    name = transform if isinstance(transform, str) else getattr(transform, "__name__", "transform")
    original = load(source)
    with guarded(name, "the transformation"):
        graph = gs.import_onnx(original.proto)
        found = function(graph)
        found = graph if found is None else found
        if not isinstance(found, gs.Graph):
            raise TypeError(f"it returned {type(found).__name__}, not onnx_graphsurgeon.Graph")
    return replace(load(found), path=original.path, external=original.external, data_files=original.data_files)
