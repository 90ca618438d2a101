"""Small nodes whose inputs are known are evaluated: this is what resolves shape arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TypeProto
from onnx.helper import make_tensor_type_proto, tensor_dtype_to_np_dtype

from onnxprune.shapes.known import SMALL, Known, NodeStep, model_of

RANDOM = {
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
}
"""Operators that give something else each time: neither constant nor worth evaluating."""

_SIZED_BY_DATA = {"Compress", "NonZero", "Unique"}


def fold(proto: ModelProto, step: NodeStep, known: Known) -> None:
    """Evaluate a node, if its inputs are known and its outputs small, and note the values."""
    feeds = _operands(step, known)
    if feeds is None or step.nested or all(name in known.values for name in step.outputs):
        return
    if not (known.knows(step.outputs) or step.operator in _SIZED_BY_DATA):
        return
    if any(prod(known.shapes.get(name, ())) > SMALL for name in step.outputs):
        return
    for name, value in _evaluate(proto, step, feeds).items():
        element = known.types.get(name, TypeProto()).tensor_type.elem_type
        is_numeric = element not in (TensorProto.UNDEFINED, TensorProto.STRING)
        if not is_numeric or not isinstance(value, (np.ndarray, np.generic)):
            continue
        if known.shapes.setdefault(name, value.shape) == value.shape and value.size <= SMALL:
            known.learn(name, make_tensor_type_proto(element, value.shape))
            known.values[name] = np.asarray(value, tensor_dtype_to_np_dtype(element))


def _operands(step: NodeStep, known: Known) -> dict[str, NDArray[Any]] | None:
    """Give what is needed to evaluate a node, or None if that isn't known."""
    if step.operator in ("Shape", "Size") and known.knows(step.reads):
        zero = np.float32(0)  # the values don't matter, and take no memory
        return {name: np.broadcast_to(zero, known.shapes[name]) for name in step.reads}
    if all(name in known.values for name in step.reads):
        return {name: known.values[name] for name in step.reads}
    return None


def _evaluate(proto: ModelProto, step: NodeStep, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Run a node on onnx's reference implementation; gives nothing if it can't be run."""
    from onnx.reference import ReferenceEvaluator  # slow to import, and often not needed

    model = model_of(proto, [step.node], feeds, step.outputs)
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception:  # whatever a malformed node provokes; the value is then unknown
        return {}
    return dict(zip(step.outputs, results, strict=True))
