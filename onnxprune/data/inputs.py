"""A model's inputs, and which arrays belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype

from onnxprune.data.batch import Array
from onnxprune.errors import DataError
from onnxprune.model.states import state_inputs

Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input of a model.

    Attributes:
        name: its name.
        shape: the size of each axis, None if it is dynamic; None if the rank isn't declared.
        dtype: its element type.
        symbols: the name of each symbolic axis, "" for others.
        state: whether it is a state, of the original's size: data needn't have it.
    """

    name: str
    shape: Dims | None
    dtype: np.dtype
    symbols: tuple[str, ...] = ()
    state: bool = False

    def __str__(self) -> str:
        """Return the form used in messages: 'image' [?x3x224x224] float32."""
        sizes = "?" if self.shape is None else "x".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name!r} [{sizes}] {self.dtype}"

    def takes(self, shape: tuple[int, ...], *, whole: bool = False) -> bool:
        """Whether an array of a shape can be fed. The first axis, of samples, may differ unless the array is whole."""
        if self.shape is None:
            return True
        skip = 0 if whole else 1
        return len(shape) == len(self.shape) and all(
            m in (None, n) for m, n in zip(self.shape[skip:], shape[skip:], strict=True)
        )


def inputs_of(model: ModelProto) -> tuple[InputSpec, ...]:
    """Return the inputs that a caller of a model must give.

    Raises:
        DataError: an input isn't a tensor of numbers (OP706).
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    states = state_inputs(model)
    specs = (_spec(value) for value in model.graph.input if value.name not in defaults)
    return tuple(replace(s, shape=states[s.name].before, state=True) if s.name in states else s for s in specs)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """Return the batch size of a model with a fixed one, None for any size.

    The batch axis is the first axis of inputs with two or more axes.
    """
    firsts = {spec.shape[0] for spec in inputs if spec.shape is not None and len(spec.shape) > 1 and not spec.state}
    sizes = firsts - {None}
    return sizes.pop() if len(sizes) == 1 else None


def _spec(value: ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    known = tensor.elem_type in get_all_tensor_dtypes() and tensor.elem_type != TensorProto.STRING
    if value.type.WhichOneof("value") != "tensor_type" or not known:
        raise DataError("OP706", f"input {value.name!r} isn't a tensor of numbers, so no data fit it")
    # Exporters write -1 or 0 for an unknown size.
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    dtype = tensor_dtype_to_np_dtype(tensor.elem_type)
    symbols = tuple(d.dim_param for d in tensor.shape.dim)
    return InputSpec(value.name, shape if tensor.HasField("shape") else None, dtype, symbols)


_INPUTS = ("images", "image", "inputs", "input", "x", "data", "features", "samples")
LABELS = ("labels", "label", "targets", "target", "y", "y_true", "classes")


# Inputs that are zero where nothing came before or nothing is told apart.
_CACHE = re.compile(r"past|cache(?!_?pos)", re.IGNORECASE)
TYPES = re.compile(r"token_?type|segment_?id", re.IGNORECASE)
"""Names of inputs that tell the two texts of a pair apart."""


def assign(
    arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, label: str | None = None
) -> tuple[dict[str, Array], Array | None, tuple[str, ...]]:
    """Match arrays to a model's inputs and to the labels, by name.

    Names are compared ignoring case and characters that file names can't have. A model's only input also takes an array
    with a common name, or the only array that isn't labels. Caches and token types without an array are zeros; where a
    cache's size is free, it is empty.

    Args:
        arrays: the arrays by name.
        inputs: the model's inputs.
        where: what the arrays are from, for messages.
        label: the name of the array of labels; by default, common names are tried.

    Returns:
        The arrays by input, the labels if there are any, and the names of unused arrays.

    Raises:
        DataError: an input has no array (OP706), or there is no such array of labels (OP708).
    """
    rest = dict(arrays)
    found: dict[str, Array] = {}
    for spec in inputs:
        name = named(rest, (spec.name,))
        if name is not None:
            found[spec.name] = rest.pop(name)
    labels_in = named(rest, LABELS if label is None else (label,))
    if label is not None and labels_in is None:
        hint = f"the arrays are: {', '.join(arrays)}"
        raise DataError("OP708", f"there is no array {label!r} of labels", where=where, hint=hint)
    labels = None if labels_in is None else rest.pop(labels_in)
    plain = [spec for spec in inputs if not spec.state]
    if len(plain) == 1 and not found:
        name = named(rest, _INPUTS) or (next(iter(rest)) if len(rest) == 1 else None)
        if name is not None:
            found[plain[0].name] = rest.pop(name)
    missing = [spec for spec in inputs if spec.name not in found]
    if found and missing:
        found |= _zeros(missing, inputs, found)
        missing = [spec for spec in missing if spec.name not in found and not spec.state]
    if missing:
        hint = f"the arrays are: {', '.join(arrays)}"
        raise DataError("OP706", f"no array for input {missing[0]}", where=where, hint=hint)
    return found, labels, tuple(rest)


def _zeros(missing: Sequence[InputSpec], inputs: Sequence[InputSpec], found: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays of zeros, which take no memory, for caches and token types with an axis of samples."""
    given = [spec for spec in inputs if spec.name in found and spec.shape and found[spec.name].ndim == len(spec.shape)]
    sizes: dict[str, int] = {
        symbol: size
        for spec in given
        for symbol, size in zip(spec.symbols, found[spec.name].shape, strict=False)
        if symbol
    }
    alike = next((found[s.name].shape for s in given if s.dtype.kind in "iu" and found[s.name].ndim == 2), ())
    count = next((len(found[spec.name]) for spec in given), 0)
    zeros: dict[str, Array] = {}
    for spec in missing:
        cache = _CACHE.search(spec.name) is not None
        if not count or not spec.shape or spec.shape[0] not in (None, 1) or not (cache or TYPES.search(spec.name)):
            continue
        free = [0] * len(spec.shape) if cache or len(alike) != len(spec.shape) else alike
        shape = [count]
        for axis, (size, symbol) in list(enumerate(zip(spec.shape, spec.symbols, strict=True)))[1:]:
            shape.append(size or sizes.get(symbol, free[axis]))
        zeros[spec.name] = np.broadcast_to(np.zeros((), spec.dtype), shape)
    return zeros


def named(found: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the first of some names that is found, as it is written there; None if there is none.

    Case and characters that file names can't have make no difference.
    """
    plain = {_plain(name): name for name in reversed(list(found))}
    return next((plain[_plain(name)] for name in names if _plain(name) in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()
