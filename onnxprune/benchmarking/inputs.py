"""Inputs for benchmarks: arrays of a batch size that fit all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import BenchmarkError, UsageError
from onnxprune.shapes import concretize, runnable_inputs
from onnxprune.shapes.inputs import declared_inputs

Arrays = dict[str, NDArray[Any]]


def make_inputs(
    proto: ModelProto,
    batch: int | None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    given: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
) -> Arrays:
    """Return inputs of a batch size.

    The batch axis is the first axis of inputs with two or more axes, or one with the same symbol as such an axis. Given
    samples are repeated or cut to the batch
    size; if none are given, inputs are generated.

    Args:
        proto: the model.
        batch: the batch size; None for that of the given arrays, the model or the shapes.
        shapes: sizes for inputs with symbolic dimensions.
        given: an array for each input.
        seed: random seed of generated inputs.

    Raises:
        UsageError: the model has another fixed batch size (OP603).
        ModelError: an input's shape is unknown (OP124).
    """
    sizes = {name: tuple(a.shape) for name, a in given.items()} if given else concretize(proto, shapes).inputs
    declared = declared_inputs(proto.graph)
    firsts = {dims[0] for dims in declared.values() if dims and len(dims) > 1 and isinstance(dims[0], str)}
    axes = {name: next((a for a, d in enumerate(dims or ()) if d in firsts), 0) for name, dims in declared.items()}
    if batch is not None:
        for name, dims in declared.items():
            if dims and len(dims) > 1 and isinstance(size := dims[axes[name]], int) and size != batch:
                cause = f'input "{name}" has a fixed batch size of {size}, not {batch}'
                raise UsageError("OP603", cause, where="batch", hint="export the model with a symbolic first axis")
        sizes = {n: (*s[: axes[n]], batch, *s[axes[n] + 1 :]) if len(s) > 1 else s for n, s in sizes.items()}
    if not given:
        return runnable_inputs(proto, sizes, seed)
    return {name: _samples(array, sizes[name], axes[name]) for name, array in given.items()}


def check_same_inputs(models: Sequence[tuple[str, ModelProto]]) -> None:
    """Check that models take the same inputs.

    Raises:
        BenchmarkError: names or types of inputs differ (OP803).
    """
    (first, reference), *others = models
    wanted = _types(reference)
    for name, proto in others:
        if _types(proto) != wanted:
            cause = f"{name} and {first} take different inputs, so their times can't be compared"
            raise BenchmarkError("OP803", cause, hint="benchmark them separately")


def _types(proto: ModelProto) -> dict[str, int]:
    own = declared_inputs(proto.graph)
    return {i.name: i.type.tensor_type.elem_type for i in proto.graph.input if i.name in own}


def _samples(array: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    if array.shape == shape:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(np.take(array, np.arange(shape[axis]) % array.shape[axis], axis))
