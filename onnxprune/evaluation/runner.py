"""Running models on batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from onnx import ModelProto

from onnxprune.data.batch import Array, Batch
from onnxprune.data.inputs import fixed_batch, inputs_of
from onnxprune.errors import ModelError
from onnxprune.model.graph import extract
from onnxprune.model.session import Provider, run, session
from onnxprune.model.states import StateInput, cut_outputs, fitted, of_original, samples_first, state_inputs
from onnxprune.model.values import as_array

_SINGLE = "use batches of one sample"
_BYTES = 2**28  # of outputs that are kept


class Runner:
    """Runs a model on batches. A model with a fixed batch size is run on pieces; the last one is padded.

    A model whose outputs have a length that depends on values is run on single samples, and shorter outputs are filled
    up: with 0, integers with -1.
    """

    def __init__(
        self,
        model: ModelProto,
        providers: Sequence[Provider],
        threads: int | None,
        pruned: Mapping[str, StateInput] | None = None,
        *,
        tensors: Sequence[str] = (),
        sized: Collection[str] = (),
    ) -> None:
        """Open a model.

        Args:
            model: the model.
            providers: execution providers.
            threads: threads within an operator.
            pruned: for an original, the states of the pruned model that it is compared with.
            tensors: tensors to return in addition to the outputs.
            sized: the outputs whose length depends on values.

        Raises:
            ModelError: ONNX Runtime refuses it (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        shown = extract(model, [*(o.name for o in model.graph.output), *tensors]) if tensors else model
        self._session = session(shown, providers=providers, threads=threads)
        fixed = fixed_batch(inputs_of(model))
        self._sized = {name: _has_samples(model, name) for name in sized}
        self._fixed = 1 if fixed is None and sized else fixed
        states = state_inputs(model) if pruned is None else of_original(pruned)
        taken = {entry.name for entry in self._session.get_inputs()}
        self._states = {name: state for name, state in states.items() if name in taken}
        self._pruned, self._returned = pruned or {}, states

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """Run a batch.

        Returns:
            The outputs, [n, ...] each, without those that aren't arrays: see `onnxprune.model.values.as_array`.

        Raises:
            ModelError: the model can't run on the batch, or an output's shape differs between samples (OP122).
        """
        size = batch.count if batch.whole or self._fixed is None else self._fixed
        parts = [self._run(batch, start, size) for start in range(0, batch.count, size)]
        names = [name for name in parts[0] if all(name in part for part in parts)]
        try:
            return {name: self._joined(name, [part[name] for part in parts]) for name in names}
        except ValueError as error:
            cause = "an output's shape differs between samples, so they can't be stacked"
            raise ModelError("OP122", cause, hint=_SINGLE) from error

    def _joined(self, name: str, parts: list[Array]) -> Array:
        if name in self._sized:
            most = np.max([part.shape for part in parts], axis=0)
            parts = [_filled(part, most) for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, batch: Batch, start: int, size: int) -> dict[str, Array]:
        feeds, rows = dict(batch.inputs), min(size, batch.count - start)
        if not batch.whole:
            feeds = {name: _piece(array, start, size) for name, array in feeds.items()}
        feeds = fitted(self._states, feeds, size)
        found = {name: as_array(value) for name, value in run(self._session, feeds).items()}
        tensors = cut_outputs(self._pruned, {name: array for name, array in found.items() if array is not None})
        tensors = samples_first(self._returned, tensors)
        for name in self._sized.keys() & tensors.keys():
            if size == 1 and not self._sized[name]:
                tensors[name] = tensors[name][None]
            elif not self._sized[name]:  # rows of several samples together, which can't be told apart
                del tensors[name]
        return {name: _rows(name, array, size)[:rows] for name, array in tensors.items()}


class Outputs:
    """A model's outputs on the batches of some data, kept for later evaluations on the same data, up to 256 MiB."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._held: dict[tuple[int, int, tuple[str, ...]], dict[str, Array]] = {}
        self._room = _BYTES

    def of(
        self, batch: Batch, start: int, tensors: Sequence[str], run: Callable[[Batch], dict[str, Array]]
    ) -> dict[str, Array]:
        """Return the outputs on a batch, from before or by running it.

        Args:
            batch: the samples.
            start: the position of the first among the data.
            tensors: what is returned in addition to the outputs.
            run: runs the model.
        """
        key = start, batch.count, tuple(tensors)
        if key in self._held:
            return self._held[key]
        found = run(batch)
        size = sum(array.nbytes for array in found.values())
        if size <= self._room:
            self._held[key], self._room = found, self._room - size
        return found


def _has_samples(model: ModelProto, name: str) -> bool:
    """Whether an output of a length that depends on values has an axis of samples: by its declaration."""
    value = next(output for output in model.graph.output if output.name == name)
    dims = value.type.tensor_type.shape.dim
    inputs = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim[:1] if d.dim_param}
    return bool(dims) and (dims[0].dim_value > 0 or dims[0].dim_param in inputs)


def _filled(array: Array, shape: Sequence[int]) -> Array:
    """Return an array filled up to a shape."""
    fill = -1 if array.dtype.kind in "iu" else "" if array.dtype.kind in "OSU" else 0
    full = np.full(shape, fill, array.dtype)
    full[tuple(map(slice, array.shape))] = array
    return full


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
