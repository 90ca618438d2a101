"""Running models on batches of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from onnxprune.data.batch import Array, Batch
from onnxprune.data.inputs import fixed_batch, inputs_of
from onnxprune.errors import ModelError
from onnxprune.model.session import Provider, run, session
from onnxprune.model.states import StateInput, cut_outputs, fitted, of_original, state_inputs

_SINGLE = "use batches of one sample"


class Runner:
    """Runs a model on batches. A model with a fixed batch size is run on pieces; the last one is padded."""

    def __init__(
        self,
        model: ModelProto,
        providers: Sequence[Provider],
        threads: int | None,
        pruned: Mapping[str, StateInput] | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: the model.
            providers: the execution providers.
            threads: the number of threads.
            pruned: for an original, the states of the pruned model that it is compared with.

        Raises:
            ModelError: ONNX Runtime refuses it (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        self._session = session(model, providers=providers, threads=threads)
        self._fixed = fixed_batch(inputs_of(model))
        states = state_inputs(model) if pruned is None else of_original(pruned)
        taken = {entry.name for entry in self._session.get_inputs()}
        self._states = {name: state for name, state in states.items() if name in taken}
        self._pruned = pruned or {}

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """Run a batch.

        Returns:
            The tensor outputs, [n, ...] each.

        Raises:
            ModelError: the model can't run on the batch, or an output's shape differs between samples (OP122).
        """
        size = batch.count if batch.whole or self._fixed is None else self._fixed
        parts = [self._run(batch, start, size) for start in range(0, batch.count, size)]
        if len(parts) == 1:
            return parts[0]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            cause = "an output's shape differs between samples, so they can't be stacked"
            raise ModelError("OP122", cause, hint=_SINGLE) from error

    def _run(self, batch: Batch, start: int, size: int) -> dict[str, Array]:
        feeds, rows = dict(batch.inputs), min(size, batch.count - start)
        if not batch.whole:
            feeds = {name: _piece(array, start, size) for name, array in feeds.items()}
        feeds = fitted(self._states, feeds, size)
        tensors = {name: value for name, value in run(self._session, feeds).items() if isinstance(value, np.ndarray)}
        tensors = cut_outputs(self._pruned, tensors)
        return {name: _rows(name, array, size)[:rows] for name, array in tensors.items()}


def _piece(array: Array, start: int, size: int) -> Array:
    """Return a slice of an array's samples, padded by repeating the last one."""
    if not array.ndim:
        return array
    piece = array[start : start + size]
    return piece if len(piece) == size else np.concatenate([piece, piece[-1:].repeat(size - len(piece), axis=0)])


def _rows(name: str, array: Array, size: int) -> Array:
    """Return an output with an axis of samples, which a single sample's output may lack."""
    if array.ndim and len(array) == size:
        return array
    if size == 1:
        return array[None]
    cause = f"output {name!r} has shape {list(array.shape)} for {size} samples"
    raise ModelError("OP122", cause, hint=_SINGLE)
