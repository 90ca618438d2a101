"""Types that onnx can't infer: from ONNX Runtime's inference, from a run of the model, or as the model declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto
from onnx.helper import make_tensor_type_proto

from onnxprune.errors import OnnxPruneError
from onnxprune.model.bodies import is_body_input, is_open
from onnxprune.model.session import session
from onnxprune.model.wire import copy_model
from onnxprune.shapes.generated import draws, try_inputs
from onnxprune.shapes.known import Shape, piece
from onnxprune.shapes.walk import Conflict, ShapeWalk

_RUN_ELEMENTS = 1 << 23  # of all inputs together; the model isn't run on more
_RUN_SECONDS = 30.0  # of each run


def runtime_types(walk: ShapeWalk, names: Sequence[str]) -> dict[str, TypeProto]:
    """Return the types that ONNX Runtime infers from what a walk knows; nothing is run."""
    wanted = set(names)
    steps = [
        s for s in walk.steps if not wanted.isdisjoint(s.outputs) and not (is_body_input(s.node) or is_open(s.node))
    ]
    names = [name for step in steps for name in step.outputs if name in wanted]
    if not names:
        return {}
    try:
        opened = session(piece(walk.proto, walk.known, steps, names), optimize=False)
    except OnnxPruneError:
        return {}
    # An empty shape may be that of a scalar, or an unknown one.
    return _complete_types((entry, entry.shape) for entry in opened.get_outputs() if entry.shape)


def is_refused(walk: ShapeWalk, conflict: Conflict) -> bool:
    """Whether ONNX Runtime finds a contradiction as well, so that the model can't be run."""
    step = walk.steps[conflict.step]
    if walk.mismatch(step):
        return True
    try:
        session(piece(walk.proto, walk.known, [step], step.outputs), optimize=False)
    except OnnxPruneError as error:
        return "InferenceError" in error.cause
    return False


class Seen(NamedTuple):
    """What a run of a model showed.

    Attributes:
        types: types of tensors without an axis of size zero: a detector that found nothing has outputs of size zero.
        feeds: the inputs; None if the model can't be run.
        problem: why it can't be run, if so.
    """

    types: dict[str, TypeProto]
    feeds: Mapping[str, NDArray[Any]] | None = None
    problem: str | None = None


def run_for_shapes(
    proto: ModelProto,
    inputs: Mapping[str, Shape],
    names: Iterable[str],
    given: Mapping[str, NDArray[Any]] | None = None,
) -> Seen:
    """Run a model in ONNX Runtime, and return the types of some of its tensors.

    Args:
        proto: The model. It isn't changed.
        inputs: The shapes of its inputs.
        names: Tensors of the main graph.
        given: An array for each input; by default they are generated, in several ways until all tensors have elements.
    """
    if sum(map(prod, inputs.values())) > _RUN_ELEMENTS:
        return Seen({}, problem="its inputs are too large to be generated")
    model = copy_model(proto, "value_info")  # which may be wrong
    present = {output.name for output in model.graph.output}
    names = list(dict.fromkeys(names))
    if not names:
        return Seen({})
    model.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in present)
    try:
        opened = session(model, optimize=False)
        candidates = draws(proto, inputs) if given is None else [given]
        feeds, arrays, _ = try_inputs(opened, candidates, seconds=_RUN_SECONDS)
    except OnnxPruneError as error:
        return Seen({}, problem=error.cause)
    shown = ((entry, np.shape(a)) for entry, a in zip(opened.get_outputs(), arrays, strict=True))
    return Seen(_complete_types((entry, shape) for entry, shape in shown if entry.name in names), feeds)


def declared_types(graph: GraphProto, symbols: Mapping[str, int], names: Iterable[str]) -> dict[str, TypeProto]:
    """Return complete types of tensors as the model declares them, right or wrong.

    An empty shape isn't taken for that of a scalar: exporters also write it for an unknown one.
    """
    wanted = set(names)
    types: dict[str, TypeProto] = {}
    for entry in (*graph.value_info, *graph.output):
        kind = entry.type.tensor_type
        if entry.name in wanted and kind.shape.dim:
            sizes = [d.dim_value or symbols.get(d.dim_param, 0) for d in kind.shape.dim]
            if all(size > 0 for size in sizes):
                types[entry.name] = make_tensor_type_proto(kind.elem_type, sizes)
    return types


def _complete_types(found: Iterable[tuple[Any, Sequence[Any]]]) -> dict[str, TypeProto]:
    """Return the types of a session's outputs, given with their shapes, that are complete."""
    types: dict[str, TypeProto] = {}
    for entry, shape in found:
        element = re.fullmatch(r"tensor\((\w+)\)", entry.type)
        if element and all(isinstance(size, int) and size > 0 for size in shape):
            number = TensorProto.DataType.Value(element[1].upper())
            types[entry.name] = make_tensor_type_proto(number, shape)
    return types
