"""Infer the shapes, types and values of all tensors of a model: `concretize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TypeProto

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.model.checks import describe
from onnxprune.shapes.fallback import declared_types, is_refused, run_for_shapes, runtime_types
from onnxprune.shapes.inputs import bind, declared_inputs, search, shape_text
from onnxprune.shapes.known import Shape
from onnxprune.shapes.walk import Conflict, ShapeWalk


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of a graph's tensors when every input has a size.

    Attributes:
        shapes: The known shapes of the main graph's tensors.
        types: Element types (`TensorProto.DataType`).
        values: Values of up to 4096 elements: constants, and what is computed from constants and the sizes of tensors.
        static: The names in `values` that depend on constants only, not on any input's size.
        inputs: The shapes of the real inputs (those that aren't initializers).
        symbols: The size of each symbolic dimension; one without a name is called `input[axis]`.
        notes: What a user should know of the sizes that were chosen.
    """

    shapes: dict[str, Shape]
    types: dict[str, int]
    values: dict[str, NDArray[Any]]
    static: frozenset[str]
    inputs: dict[str, Shape]
    symbols: dict[str, int]
    notes: tuple[str, ...] = ()


def concretize(proto: ModelProto, input_shapes: Mapping[str, Sequence[int] | int] | None = None) -> Shapes:
    """Choose the size of every input, and find the shape, type and, if it is small, value of every tensor.

    Sizes that the user gives come first; a symbol has the same size everywhere. Otherwise the first axis gets 1, and
    other axes the first of the usual sizes at which the graph's shapes don't contradict each other. The search is
    bounded, and varies one symbol at a time (an image's height and width together).

    Args:
        proto: A model in topological order, preferably a normalized one. It isn't changed.
        input_shapes: The shapes of some inputs, or the sizes of symbolic dimensions: ``{"ids": (1, 48)}`` or
            ``{"sequence": 48}``.

    Returns:
        What is known. Tensors whose shape can't be found are left out, such as those of operators that neither onnx nor
        ONNX Runtime knows.

    Raises:
        ModelError: An input has no declared rank (OP124) or an axis of size zero (OP111), or no sizes fit the graph
            (OP125).
        UsageError: `input_shapes` doesn't fit the model's inputs (OP603).
    """
    declared = declared_inputs(proto.graph)
    walk, symbols, avoided = search(ShapeWalk(proto), *bind(declared, input_shapes or {}))
    known = walk.known
    inputs = {name: known.shapes[name] for name in declared}
    # With fixed sizes only, a contradiction is in the model itself, and left for ONNX Runtime to report.
    if walk.conflict and (symbols or input_shapes) and is_refused(walk, walk.conflict):
        raise _misfit(walk, walk.conflict, inputs)
    sources: tuple[Callable[[list[str]], Mapping[str, TypeProto]], ...] = (
        lambda unknown: runtime_types(walk, unknown),
        lambda unknown: run_for_shapes(proto, inputs, unknown),
        lambda unknown: declared_types(proto.graph, symbols, unknown),
    )
    for source in sources:
        if unknown := walk.unknown():
            walk.run(fallback=source(unknown))
    elements = {name: kind.tensor_type.elem_type for name, kind in known.types.items()}
    notes = []
    if avoided is not None and avoided.factor is not None:
        sizes = ", ".join(f"{name} = {size}" for name, size in symbols.items())
        notes.append(
            f"a size is fixed inside the model, at {describe(walk.steps[avoided.step].node)}; it runs with {sizes}"
        )
    return Shapes(
        shapes=known.shapes,
        types={name: element for name, element in elements.items() if element},
        values=known.values,
        static=frozenset(known.constant.intersection(known.values)),
        inputs=inputs,
        symbols=symbols,
        notes=tuple(notes),
    )


def _misfit(walk: ShapeWalk, conflict: Conflict, inputs: Mapping[str, Shape]) -> ModelError:
    first, shape = next(iter(inputs.items()))
    return ModelError(
        "OP125",
        f"shapes contradict each other at {describe(walk.steps[conflict.step].node)}: {conflict.message}",
        where="input sizes " + ", ".join(f"{name}:{shape_text(shape)}" for name, shape in inputs.items()),
        hint=f"give sizes that fit with `input_shapes`: {first}:{shape_text(shape)} with other numbers",
    )


def concretize_otherwise(proto: ModelProto, shapes: Shapes) -> Shapes | None:
    """Concretize at other sizes of all symbolic dimensions; None if no others fit.

    Args:
        proto: the model.
        shapes: what is known of it at the sizes to avoid.
    """
    for times, plus in ((1, 1), (2, 0)):
        inputs = {}
        for entry in proto.graph.input:
            dims = entry.type.tensor_type.shape.dim
            sizes = shapes.inputs.get(entry.name, ())
            inputs[entry.name] = [
                n if d.HasField("dim_value") and d.dim_value > 0 else times * n + plus
                for n, d in zip(sizes, dims, strict=False)
            ]
        try:
            return concretize(proto, inputs)
        except OnnxPruneError:
            continue
    return None
