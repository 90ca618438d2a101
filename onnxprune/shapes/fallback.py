"""Types that onnx can't infer: from ONNX Runtime's inference, from a run of the model, or as the model declares."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto
from onnx.helper import make_tensor_type_proto, tensor_dtype_to_np_dtype

from onnxprune.errors import OnnxPruneError
from onnxprune.model.session import session
from onnxprune.model.wire import copy_model
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.shapes.known import Shape, piece
from onnxprune.shapes.walk import Conflict, ShapeWalk

_RUN_ELEMENTS = 1 << 23  # of all inputs together; the model isn't run on more
_RUN_SECONDS = 30.0


def runtime_types(walk: ShapeWalk, names: Sequence[str]) -> dict[str, TypeProto]:
    """Return the types that ONNX Runtime infers from what a walk knows; nothing is run."""
    wanted = set(names)
    steps = [step for step in walk.steps if not wanted.isdisjoint(step.outputs)]
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


def run_for_shapes(proto: ModelProto, inputs: Mapping[str, Shape], names: Iterable[str]) -> dict[str, TypeProto]:
    """Run a model once in ONNX Runtime on random inputs, and return the types of some of its tensors.

    Args:
        proto: The model. It isn't changed.
        inputs: The shapes of its inputs. Floats are drawn from a normal distribution, integers are 0 or 1.
        names: Tensors of the main graph.

    Returns:
        The types of those that are tensors without an axis of size zero: a detector that found nothing has outputs of
        size zero. Empty if the model can't be run within half a minute.
    """
    if sum(map(prod, inputs.values())) > _RUN_ELEMENTS:
        return {}
    model = copy_model(proto, "value_info")  # which may be wrong
    present = {output.name for output in model.graph.output}
    names = list(dict.fromkeys(names))
    model.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in present)
    rng = np.random.default_rng(0)
    try:
        feeds = {
            entry.name: _random(entry.type.tensor_type.elem_type, inputs[entry.name], rng)
            for entry in proto.graph.input
            if entry.name in inputs
        }
        opened = session(model, optimize=False)
        options = import_onnxruntime().RunOptions()
        options.log_severity_level = 4
        stop = threading.Timer(_RUN_SECONDS, setattr, (options, "terminate", True))
        stop.start()
        try:
            arrays = opened.run(names, feeds, options)
        finally:
            stop.cancel()
    except Exception:  # of many kinds; without shapes from the run, they stay unknown
        return {}
    entries = {entry.name: entry for entry in opened.get_outputs()}
    return _complete_types((entries[n], np.shape(a)) for n, a in zip(names, arrays, strict=True))


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


def _random(element: int, shape: Shape, rng: np.random.Generator) -> NDArray[Any]:
    kind = tensor_dtype_to_np_dtype(element)
    if kind.kind == "O":
        return np.full(shape, "", object)
    values = rng.standard_normal(shape) if kind.kind in "fV" else rng.integers(0, 2, shape)
    return np.asarray(values).astype(kind)
