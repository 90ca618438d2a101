"""A model's inputs, as data have to fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype

from onnxprune.errors import DataError

Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input of a model.

    Attributes:
        name: its name.
        shape: a size for each axis, None where it is open; None if the rank isn't declared.
        dtype: the type of its elements.
    """

    name: str
    shape: Dims | None
    dtype: np.dtype

    def __str__(self) -> str:
        """Write it as messages do: 'image' [?x3x224x224] float32."""
        sizes = "?" if self.shape is None else "x".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name!r} [{sizes}] {self.dtype}"

    def takes(self, shape: tuple[int, ...], *, whole: bool = False) -> bool:
        """Tell whether an array of a shape can be fed; only a whole one needs the declared size of the first axis."""
        if self.shape is None:
            return True
        skip = 0 if whole else 1
        return len(shape) == len(self.shape) and all(
            m in (None, n) for m, n in zip(self.shape[skip:], shape[skip:], strict=True)
        )


def inputs_of(model: ModelProto) -> tuple[InputSpec, ...]:
    """List the inputs that a caller of a model must give.

    Raises:
        DataError: one isn't a tensor of numbers (OP706).
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in defaults)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """Give the number of samples that a model is made for, None if any number will do.

    The first axis of an input of two axes or more is taken to count samples.
    """
    firsts = {spec.shape[0] for spec in inputs if spec.shape is not None and len(spec.shape) > 1}
    sizes = firsts - {None}
    return sizes.pop() if len(sizes) == 1 else None


def _spec(value: ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    known = tensor.elem_type in get_all_tensor_dtypes() and tensor.elem_type != TensorProto.STRING
    if value.type.WhichOneof("value") != "tensor_type" or not known:
        raise DataError("OP706", f"input {value.name!r} isn't a tensor of numbers, so that no data fit it")
    # Exporters write -1 or 0 for a size that isn't known.
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    dtype = tensor_dtype_to_np_dtype(tensor.elem_type)
    return InputSpec(value.name, shape if tensor.HasField("shape") else None, dtype)
