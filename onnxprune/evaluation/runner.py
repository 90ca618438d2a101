"""A model in ONNX Runtime that takes batches of any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from onnxprune.data.batch import Array, Batch
from onnxprune.data.inputs import fixed_batch, inputs_of
from onnxprune.errors import ModelError
from onnxprune.model.session import Provider, run, session


class Runner:
    """Runs a model on batches. One of fixed batch size runs as often as it takes, the last time on repeated samples."""

    def __init__(self, model: ModelProto, providers: Sequence[Provider], threads: int | None) -> None:
        """Open a model.

        Raises:
            ModelError: ONNX Runtime refuses it (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        self._session = session(model, providers=providers, threads=threads)
        self._fixed = fixed_batch(inputs_of(model))

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """Run a batch.

        Returns:
            The outputs that are tensors, [n, ...] each.

        Raises:
            ModelError: the model can't run on it, or its outputs' shapes differ from sample to sample (OP122).
        """
        size = batch.count if batch.whole or self._fixed is None else self._fixed
        parts = [self._run(batch, start, size) for start in range(0, batch.count, size)]
        if len(parts) == 1:
            return parts[0]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            cause = "an output's shape changes from sample to sample, so that samples can't be put together"
            raise ModelError("OP122", cause, hint="ask for batches of one sample") from error

    def _run(self, batch: Batch, start: int, size: int) -> dict[str, Array]:
        feeds, rows = dict(batch.inputs), min(size, batch.count - start)
        if not batch.whole:
            feeds = {name: _piece(array, start, size) for name, array in feeds.items()}
        tensors = {name: value for name, value in run(self._session, feeds).items() if isinstance(value, np.ndarray)}
        return {name: _rows(name, array, size)[:rows] for name, array in tensors.items()}


def _piece(array: Array, start: int, size: int) -> Array:
    """Cut so many samples out of an array, or repeat the last one if there are too few."""
    if not array.ndim:
        return array
    piece = array[start : start + size]
    return piece if len(piece) == size else np.concatenate([piece, piece[-1:].repeat(size - len(piece), axis=0)])


def _rows(name: str, array: Array, size: int) -> Array:
    """Give an output an axis of samples; that of a single sample may lack it."""
    if array.ndim and len(array) == size:
        return array
    if size == 1:
        return array[None]
    cause = f"output {name!r} has shape {list(array.shape)} for {size} samples"
    raise ModelError("OP122", cause, hint="ask for batches of one sample")
