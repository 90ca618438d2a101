"""Cleaning as the command `clean` does it: optimizers rewrite the graph, and the best rewrite that is right is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import speedups
from onnxprune.cleaning.optimizers import OPTIMIZERS, installed, optimize
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.model.bodies import close_bodies
from onnxprune.model.checks import count_nodes
from onnxprune.model.file import Model, Source, file_size, load
from onnxprune.model.metadata import CLEANED, VERSION, read_note, write_notes
from onnxprune.model.session import run, session, with_threads
from onnxprune.model.wire import pieces
from onnxprune.normalize import normalize
from onnxprune.progress import Progress, counted, silent
from onnxprune.rewrite.comparison import compare_outputs, interface_changes
from onnxprune.rewrite.verify import default_tolerance
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings.cleaning import CleanSettings, OptimizerName
from onnxprune.settings.reading import either
from onnxprune.shapes import concretize, runnable_inputs
from onnxprune.version import __version__

NORMALIZED: OptimizerName = "onnxprune"
"""The name of what `onnxprune.normalize` does, which every model that is written goes through."""

_LARGER = 1.01  # of the file's bytes, above which a model counts as larger

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cleaner:
    """What an optimizer made of a model.

    Attributes:
        name: the optimizer.
        model: the model; the file itself if there is no other.
        nodes: number of its nodes, those of bodies included.
        size: its bytes.
        error: largest difference of its outputs from those of the file, relative to the output's largest magnitude.
        speedup: how many times as fast as the file; None if it wasn't timed.
        failure: why it isn't taken; None if it may be.
    """

    name: str
    model: ModelProto
    nodes: int
    size: int
    error: float = float("inf")
    speedup: Estimate | None = None
    failure: str | None = None

    def __repr__(self) -> str:
        """Return the optimizer, the number of nodes, and why it isn't taken."""
        return f"Cleaner({self.name}: {self.nodes} nodes, {self.size:,} bytes, {self.failure or 'equal'})"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The result of `clean`.

    Attributes:
        model: the model; the given one if nothing makes it better.
        before: the file.
        best: what was taken; None if the model stays as it is.
        tried: what the optimizers made.
        tolerance: the largest difference of outputs at which they count as equal.
        draws: the number of inputs that they were compared on.
        missing: the optimizers that aren't installed.
    """

    model: Model
    before: Cleaner
    best: Cleaner | None
    tried: tuple[Cleaner, ...]
    tolerance: float
    draws: int
    missing: tuple[str, ...] = ()


def clean(
    model: Source, settings: CleanSettings | None = None, *, progress: Progress = silent, **options: Any
) -> Cleaned:
    """Return a model that computes the same with fewer nodes: constants folded, dead code gone, nodes fused.

    Optimizers of others rewrite it, each in a process of its own. What changes outputs, is larger or slower than the
    file, or fails, is left out. Of the rest, the one with the fewest nodes is taken.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        settings: the settings; `options` are an alternative.
        progress: called with phases and their parts.
        **options: fields of `CleanSettings`: optimizers, timed, threads, inputs, ...

    Raises:
        ModelError: the model can't be read or run (OP122).
        UsageError: a setting is unknown (OP602).

    Examples:
        >>> import onnxprune as op
        >>> small = op.clean("models/digits_resnet.onnx", optimizers=("onnxruntime",))
        >>> small.best.nodes < small.before.nodes
        True
    """
    settings = either(CleanSettings, settings, options)
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        return _clean(load(model), settings, progress)


def _clean(loaded: Model, settings: CleanSettings, progress: Progress) -> Cleaned:
    original = loaded.proto
    base = close_bodies(normalize(original))
    inputs = list(_inputs(base, settings))
    tolerance = default_tolerance(base)
    before = Cleaner("file", original, count_nodes(original.graph), file_size(loaded) or pieces(original)[0], 0.0)
    names = (NORMALIZED, *OPTIMIZERS) if settings.optimizers is None else settings.optimizers
    present = [name for name in names if name in OPTIMIZERS and installed(name)]
    tried = [_checked(NORMALIZED, base, before, inputs, tolerance)] if NORMALIZED in names else []
    for number, name in enumerate(present):
        progress("optimize", number, len(present))
        try:
            made = optimize(base, name, seconds=settings.optimizer_seconds)
        except OnnxPruneError as error:
            tried.append(replace(before, name=name, error=float("inf"), failure=error.cause))
            continue
        tried.append(_checked(name, made, before, inputs, tolerance))
    if settings.timed:
        tried = _timed(before, tried, inputs[0], settings, progress)
    fit = [t for t in tried if t.failure is None and (t.nodes, t.size) < (before.nodes, before.size)]
    best = min(fit, key=lambda t: (t.nodes, t.size), default=None)
    missing = tuple(name for name in names if name not in (NORMALIZED, *present))
    found = Cleaned(loaded, before, best, tuple(tried), tolerance, len(inputs), missing)
    if best is None:
        return found
    write_notes(best.model, {VERSION: __version__, CLEANED: json.dumps({"optimizer": best.name})})
    return replace(found, model=replace(loaded, proto=best.model))


def _checked(name: str, made: ModelProto, before: Cleaner, inputs: Sequence[Arrays], tolerance: float) -> Cleaner:
    """Compare a rewritten model with the file."""
    found = Cleaner(name, made, count_nodes(made.graph), pieces(made)[0])
    if changes := interface_changes(before.model, made):
        return replace(found, failure=f"it changes the interface: {changes[0]}")
    try:
        distances = [d for feeds in inputs for d in compare_outputs(before.model, made, feeds)]
    except OnnxPruneError as error:
        return replace(found, failure=error.cause)
    found = replace(found, error=max((d.difference for d in distances), default=float("inf")))
    if not all(d.sound for d in distances) or not found.error <= tolerance:
        return replace(found, failure="it changes the outputs")
    if found.size > _LARGER * before.size:
        return replace(found, failure="it makes the file larger")
    return found


def _timed(
    before: Cleaner, tried: Sequence[Cleaner], feeds: Arrays, settings: CleanSettings, progress: Progress
) -> list[Cleaner]:
    """Time what may be taken in turns with the file."""
    fit = [i for i, t in enumerate(tried) if t.failure is None]
    how = SessionSettings(Provider(CPU), settings.threads)
    subjects = [TimedSession(m, feeds, how) for m in (before.model, *(tried[i].model for i in fit))]
    found = list(tried)
    for i, speed in zip(fit, speedups(subjects, seed=settings.seed, progress=counted(progress, "time")), strict=True):
        found[i] = replace(tried[i], speedup=speed, failure="it is slower than the file" if speed.high < 1 else None)
    return found


def _inputs(base: ModelProto, settings: CleanSettings) -> Iterator[Arrays]:
    """Yield inputs to compare outputs on: those given, or of the usual sizes; and larger ones where sizes are open."""
    seed, given = settings.seed, settings.inputs
    sizes = {name: array.shape for name, array in (given or {}).items()} | dict(settings.input_shapes or {})
    shapes = concretize(base, sizes, given).inputs
    yield dict(given) if given is not None else runnable_inputs(base, shapes, seed)
    opened = session(base, optimize=False)
    for first_only in (False, True):  # rewriters that take a symbolic size for a constant are found out
        larger = {
            value.name: tuple(
                size + (not dim.HasField("dim_value") and (axis == 0 or not first_only))
                for axis, (size, dim) in enumerate(
                    zip(shapes[value.name], value.type.tensor_type.shape.dim, strict=True)
                )
            )
            for value in base.graph.input
            if value.name in shapes
        }
        if larger == dict(shapes):
            return
        try:
            feeds = runnable_inputs(base, larger, seed + 1)
            run(opened, feeds)
        except OnnxPruneError:
            continue
        yield feeds
        return


def as_cleaned(original: Model, other: ModelProto) -> Model | None:
    """Return a file cleaned by the optimizer that another model's metadata name; None if they name none.

    Raises:
        ModelError: the file can't be run (OP122).
    """
    with suppress(ValueError, TypeError, KeyError, RecursionError):  # others may have written the metadata
        name = json.loads(read_note(other, CLEANED) or "{}")["optimizer"]
        if name == NORMALIZED or (name in OPTIMIZERS and installed(name)):
            found = clean(original, optimizers=(name,), timed=False)
            return load(found.model.proto) if found.best is not None else None
    return None
