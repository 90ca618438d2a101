"""Outputs whose size follows that of the image: enlarge those that are maps of it, and say why another can't be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from onnxprune.channels.values import Shape
from onnxprune.errors import PlanError
from onnxprune.model.graph import GraphIndex, names_in, opset_of, unique, with_inputs, with_nodes
from onnxprune.resolution.images import FLOATS, Size
from onnxprune.resolution.interpolation import RESIZE, resize_node
from onnxprune.shapes import Shapes

Change = tuple[Shape | None, Shape | None]
"""The shape of an output before, and now."""


def misfit(name: str, change: Change, why: Literal["no map", "not asked"]) -> PlanError:
    """Return the error of an output that has another shape."""
    before, now = ("x".join(map(str, shape)) if shape else "an unknown size" for shape in change)
    hint = {
        "no map": "only outputs that are maps of the image can be enlarged, by models of opset 11 and newer",
        "not asked": "`resize_outputs` enlarges outputs that are maps of the image, such as masks",
    }[why]
    cause = f"the resolution can't be changed: an output would have {now} instead of {before}"
    return PlanError("OP319", cause, where=f'graph output "{name}"', hint=hint)


def restored(
    proto: ModelProto, old: Shapes, other: Mapping[str, Change], images: Sequence[tuple[Size, Size]]
) -> tuple[ModelProto, dict[str, str]]:
    """Return a model whose outputs that are maps of an image have the size that they had, and what is behind each.

    Args:
        proto: the model that resizes its images.
        old: the shapes of the original.
        other: the outputs with another shape.
        images: the old and the new size of each image.
    """
    if opset_of(proto) < RESIZE:
        return proto, {}
    taken, constants = names_in(proto.graph), dict[str, NDArray[Any]]()
    readers, maps, resizes = GraphIndex(proto.graph).readers, dict[str, str](), list[NodeProto]()
    for name, (before, now) in other.items():
        captured = any(name not in node.input for node in readers.get(name, ()))  # by a body, where names stay
        if captured or not before or not now or len(before) != len(now) or old.types.get(name) not in FLOATS:
            continue
        changed = {axis: (m, n) for axis, (n, m) in enumerate(zip(before, now, strict=True)) if n != m}
        if len(changed) <= 2 and all(_follows(n, m, images) for m, n in changed.values()):
            maps[name] = unique(f"{name}_map", taken)
            resizes.append(resize_node(maps[name], name, changed, len(before), taken, constants))
    nodes = []
    for node in proto.graph.node:
        copy = with_inputs(node, (maps.get(name, name) for name in node.input))
        copy.output[:] = [maps.get(name, name) for name in node.output]
        nodes.append(copy)
    result = with_nodes(proto, [*nodes, *resizes])
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return result, maps


def _follows(old: int, new: int, images: Sequence[tuple[Size, Size]]) -> bool:
    """Whether an axis became smaller as one of an image did, up to the rounding of strides."""
    return any(abs(old * m / n - new) < 1 for size, by in images for n, m in zip(size, by, strict=True) if n != m)
