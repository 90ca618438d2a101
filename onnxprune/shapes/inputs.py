"""The dimensions of a model's inputs: as declared, and as the user gives them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from onnx import GraphProto

from onnxprune.errors import ModelError, UsageError
from onnxprune.shapes.known import Shape, is_tensor

Dims = tuple[int | str, ...]  # sizes, and the names of symbolic dimensions

_NAMELESS = {"", "?", "None", "-1"}  # what exporters write time and again for "unknown"


def declared_inputs(graph: GraphProto) -> dict[str, Dims | None]:
    """Give the declared dimensions of the tensors that are fed; None where there are none.

    Raises:
        ModelError: One has an axis of size zero (OP111).
    """
    given = {tensor.name for tensor in graph.initializer}
    given.update(sparse.values.name for sparse in graph.sparse_initializer)
    inputs: dict[str, Dims | None] = {}
    for entry in graph.input:
        if entry.name in given or not is_tensor(entry.type):
            continue
        kind = entry.type.tensor_type
        inputs[entry.name] = None
        if kind.HasField("shape"):
            inputs[entry.name] = tuple(
                dim.dim_value
                if dim.HasField("dim_value") and dim.dim_value >= 0
                else f"{entry.name}[{axis}]"
                if dim.dim_param in _NAMELESS
                else dim.dim_param
                for axis, dim in enumerate(kind.shape.dim)
            )
        if 0 in (inputs[entry.name] or ()):
            raise ModelError(
                "OP111",
                f'input "{entry.name}" has an axis of size zero',
                where=f"declared shape {shape_text(inputs[entry.name])}",
                hint="export the model with this axis symbolic or with its real size",
            )
    return inputs


def bind(
    declared: Mapping[str, Dims | None], given: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Dims], dict[str, int]]:
    """Fit the user's shapes to the inputs.

    Returns:
        Every input's dimensions, the user's where they are given, and the sizes that they give to symbols.

    Raises:
        ModelError: An input has neither a declared nor a given shape (OP124).
        UsageError: A given shape doesn't fit (OP603).
    """
    for name in given:
        if name not in declared:
            close = get_close_matches(name, declared, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"inputs: {', '.join(declared)}"
            raise UsageError("OP603", f'the model has no input "{name}"', hint=hint)
    dims: dict[str, Dims] = {}
    symbols: dict[str, int] = {}
    for name, shape in declared.items():
        if name in given:
            dims[name] = _fit(name, shape, given[name], symbols)
        elif shape is None:
            raise ModelError(
                "OP124",
                f'input "{name}" has no declared shape',
                hint=f"give it with --input-shape {name}:1,3,224,224 (its own sizes)",
            )
        else:
            dims[name] = shape
    return dims, symbols


def _fit(name: str, shape: Dims | None, given: Sequence[int], symbols: dict[str, int]) -> Shape:
    """Check the shape given for an input, and note the sizes that it gives to symbols."""
    where = f"--input-shape {name}:{','.join(map(str, given))}"
    declared = None if shape is None else f'"{name}" is declared as {shape_text(shape)}'

    def misfit(cause: str) -> UsageError:
        return UsageError("OP603", cause, where=where, hint=declared)

    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise misfit("sizes are whole numbers") from None
    if any(size < 1 for size in sizes):
        raise misfit("sizes are positive")
    if shape is None:
        return sizes
    if len(sizes) != len(shape):
        raise misfit(f"{len(sizes)} sizes for {len(shape)} axes")
    for axis, (want, size) in enumerate(zip(shape, sizes, strict=True)):
        fixed = want if isinstance(want, int) else symbols.setdefault(want, size)
        if fixed != size:
            why = "by the model" if isinstance(want, int) else f'by "{want}" in another place'
            raise misfit(f"axis {axis} is fixed at {fixed} {why}, not {size}")
    return sizes


def shape_text(shape: Iterable[object] | None) -> str:
    """Write a shape as the command line takes it."""
    return ",".join(map(str, shape or ()))
