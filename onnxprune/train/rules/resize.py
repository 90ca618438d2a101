"""Resize: a linear map along each axis, known by what it makes of unit vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.model.session import run, session
from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode
from onnxprune.train.registry import gradient


@gradient("Resize", "Upsample")
def resize(op: GradientNode, dy: Tensor) -> Tensor:
    """Apply the transposed map, axis by axis."""
    shape = op.x().shape
    for axis, (size, out) in enumerate(zip(shape, dy.shape, strict=True)):
        matrix = _matrix(op, axis, size, out)
        if not np.array_equal(matrix, np.eye(size)):
            order = [a for a in range(dy.rank) if a != axis] + [axis]
            product = dy.transpose(order) @ dy.like(matrix.T)
            dy = product.transpose(np.argsort(order).tolist())
    return dy


def _matrix(op: GradientNode, axis: int, size: int, out: int) -> NDArray[np.float32]:
    """Return what the node makes of unit vectors along an axis, [size, out]."""
    chosen = [a % op.x().rank for a in op.attr("axes") or range(op.x().rank)]
    if axis not in chosen:
        return np.eye(size, dtype=np.float32)
    place, count = chosen.index(axis), len(chosen)
    roi, scales = op.const(1), op.const(2)
    part = () if roi is None or not roi.size else tuple(roi[[place, place + count]].tolist())
    scale = None if scales is None or not scales.size else float(scales[place])
    same = scale in (None, 1.0) and size == out and not part
    if same:
        return np.eye(size, dtype=np.float32)
    names = (
        "antialias",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "mode",
        "nearest_mode",
    )
    attributes = tuple((n, op.attr(n)) for n in names if op.attr(n) is not None)
    if dict(attributes).get("extrapolation_value"):
        raise NotImplementedError("it fills with a value of its own")
    return _probe(op.tape.opset, size, out, scale, part, attributes)


@cache
def _probe(
    opset: int,
    size: int,
    out: int,
    scale: float | None,
    roi: tuple[float, ...],
    attributes: tuple[tuple[str, Any], ...],
) -> NDArray[np.float32]:
    """Resize the rows of a unit matrix. The shape has four axes: kernels for interpolation want images."""
    known = dict(attributes)
    region = [0.0, 0.0, 0.0, roi[0], 1.0, 1.0, 1.0, roi[1]] if roi else []
    amount = ("scales", [1.0, 1.0, 1.0, scale]) if scale else ("sizes", [1, 1, size, out])
    constants = [
        helper.make_tensor("roi", TensorProto.FLOAT, [len(region)], region),
        helper.make_tensor(amount[0], TensorProto.FLOAT if scale else TensorProto.INT64, [4], amount[1]),
    ]
    inputs = ["x", "roi", *(["scales"] if scale else ["", "sizes"])]
    node = helper.make_node("Resize", inputs, ["y"], **known)
    value = helper.make_tensor_value_info
    ports = [value("x", TensorProto.FLOAT, [1, 1, size, size])], [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "probe", *ports, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found: NDArray[np.float32] = run(session(model), {"x": np.eye(size, dtype=np.float32)[None, None]})["y"][0, 0]
    return found
