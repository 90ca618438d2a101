"""Conversion of user input to what the workflow needs: data, batches, transformed models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

from onnxprune.data import Data, Dataset, Recipe, open_data, read_recipe
from onnxprune.data.text import TOKENIZER
from onnxprune.evaluation.preprocessing import suited
from onnxprune.model.file import Model, Source, load
from onnxprune.model.states import fitted, state_inputs
from onnxprune.model.stream import Batches, Inputs
from onnxprune.runtime.functions import find_function, guarded
from onnxprune.settings import DataSettings
from onnxprune.settings.shrinking import LIMIT
from onnxprune.shapes.runnable import operators
from onnxprune.trace import ChannelGraph

log = logging.getLogger(__name__)

_BATCH = 32

Samples = Any
"""Inputs: what `open_data` takes, a `Dataset`, or a function that returns batches of inputs."""


def open_samples(settings: DataSettings, model: Source, *, seed: int, limit: int | None = None) -> Dataset:
    """Open data for a model, log the assumptions made, and replace a guess of the preprocessing by what suits best.

    Args:
        settings: the data, and how they are read.
        model: the model. A tokenizer in its folder makes inputs of texts.
        seed: random seed of the choice of samples.
        limit: default number of samples; None for all.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    found = _opened(settings, model, seed, settings.limit or limit)
    why = None
    if isinstance(found, Data) and settings.data != "random":
        found, why = suited(load(model).proto, found, seed=seed)
    for note in getattr(found, "notes", ()):
        if why is not None and note == str(why):
            log.warning("%s", note)
        else:
            log.info("note: %s", note)
    return found


def as_opened(settings: DataSettings, data: Dataset) -> DataSettings:
    """Return settings with the preprocessing that data were opened with, so that other data are read alike."""
    return replace(settings, preprocess=data.recipe) if isinstance(data, Data) else settings


def first_inputs(settings: DataSettings, model: Source) -> Inputs | None:
    """Return the inputs of the first sample of data, or of the first samples of a fixed number; None without any data.

    Synthetic inputs don't count: they have the sizes that the model is given.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    if settings.data is None or settings.data == "random":
        return None
    return next((batch.inputs for batch in _opened(replace(settings, labels=None), model, 0, None).batches(1)), None)


def _opened(settings: DataSettings, model: Source, seed: int, limit: int | None) -> Dataset:
    spec, recipe = settings.data, settings.preprocess
    if hasattr(spec, "batches"):
        return cast(Dataset, spec)
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    loaded = load(model)
    beside = None if loaded.path is None else loaded.path.with_name(TOKENIZER)
    tokenizer = settings.tokenizer or (beside if beside is not None and beside.is_file() else None)
    reading = {"labels": settings.labels, "reading": settings.reading, "tokenizer": tokenizer}
    return open_data(spec, loaded.proto, recipe=recipe, limit=limit, seed=seed, **reading)


def batches_of(samples: Samples, model: Source, *, seed: int = 0) -> Batches | None:
    """Return a function that yields calibration inputs in batches; None if there are no samples.

    Raises:
        DataError: the data can't be read or don't fit the model.
    """
    if samples is None or (callable(samples) and not hasattr(samples, "batches")):
        return cast("Batches | None", samples)
    return calibration_batches(open_samples(DataSettings(data=samples), model, seed=seed, limit=LIMIT), model)


def calibration_batches(opened: Dataset, model: Source) -> Batches:
    """Return a function that yields the inputs of samples in batches."""
    states = state_inputs(load(model).proto)

    def again() -> Iterable[Inputs]:
        return (fitted(states, batch.inputs, batch.count) for batch in opened.batches(_BATCH))

    return again


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
