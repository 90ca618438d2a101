"""Check that a rewritten model is valid and has the shapes that its plan predicts."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from onnxprune.errors import RewriteError
from onnxprune.errors.words import one_line
from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import skeleton
from onnxprune.trace.pruned_graph import PrunedGraph

_REPORT = "this is a defect of onnxprune: please report the model"


def check_sound(kept: PrunedGraph, pruned: ModelProto) -> None:
    """Run onnx's checker and its strict shape inference on a rewritten model.

    Weights are left out, so that models of any size can be checked. Problems of the original model are ignored.

    Args:
        kept: the traced model and what was removed from it.
        pruned: the rewritten model.

    Raises:
        RewriteError: onnx rejects the model but not the original (OP403), or infers a shape that differs from the
            predicted one, while it infers the original's correctly (OP404).
    """
    before = kept.original.proto
    try:
        found = _inferred(pruned)
    except Exception as error:  # onnx raises errors of many kinds
        if _refused(before):
            return
        cause = f"onnx refuses it: {one_line(error)}"
        raise RewriteError("OP403", cause, hint=_REPORT) from error
    shapes = kept.graph.shapes.shapes
    wrong = [n for n, dims in found.items() if n in shapes and not _agree(dims, kept.shape(n))]
    if not wrong or _refused(before):
        return
    known, sizes = _inferred(before), kept.original.shapes.shapes
    for name in wrong:
        if name not in known or _agree(known[name], sizes[name]):
            cause = f"a tensor has the shape {list(found[name])}, and not {list(kept.shape(name))} as predicted"
            raise RewriteError("OP404", cause, where=f'"{name}"', hint=_REPORT)


def _refused(model: ModelProto) -> bool:
    try:
        _inferred(model)
    except Exception:
        return True
    return False


def _inferred(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Check a model as `onnx.checker` does with full_check, and return the shapes of its tensors and weights."""
    small = close_bodies(skeleton(model))
    onnx.checker.check_model(small)
    graph = onnx.shape_inference.infer_shapes(small, check_type=True, strict_mode=True).graph
    shapes: dict[str, tuple[int | None, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = (d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
            shapes[value.name] = tuple(dims)
    return shapes


def _agree(dims: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(dims) == len(shape) and all(d is None or d == n for d, n in zip(dims, shape, strict=True))
