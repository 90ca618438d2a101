"""Find the inputs that are images or sequences of frames, by the layers that slide over them or step through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.graph import RECURRENT, GraphIndex, attribute, attributes
from onnxprune.shapes import Shapes

_SLIDE = {"Conv", "ConvInteger", "FusedConv", "QLinearConv"}
POOLS = {"AveragePool", "LpPool", "MaxPool", "QLinearAveragePool"}
_PASS = {"Concat", "Pad", "Slice", "Split"}  # may change sizes, and keep every axis in its place
_ENLARGE = {"ConvTranspose", "DepthToSpace", "Resize", "Upsample"}
_MIX = {"Flatten", "Gemm", "MatMul", "Reshape", "Transpose"}  # may give the same shape another meaning
_ONES = {"Reshape", "Squeeze", "Unsqueeze"}  # may only add, drop or move axes of size 1
_RANKS = range(2, 5)
Size = tuple[int, ...]
"""Height and width of an image, or the number of frames."""

_Place = tuple[int | None, ...]
"""For each axis of a tensor, that of the input which it is; None for one of size 1 that was added."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Image:
    """An input that is an image, or a sequence of frames.

    Attributes:
        name: the input.
        site: the tensor to resize: the input, or the numbers that its bytes are converted to.
        axes: the axes of height and width, or that of the frames.
        size: height and width, or the number of frames.
        stride: by how much the network reduces them with strides, all in all.
        values: the number of values at each position.
    """

    name: str
    site: str
    axes: tuple[int, ...]
    size: Size
    stride: int
    values: int


def find_images(proto: ModelProto, shapes: Shapes) -> tuple[Image, ...]:
    """Return the inputs of a normalized model that are images or frames of real numbers, or become so at once."""
    index, found = GraphIndex(proto.graph), []
    for name, shape in shapes.inputs.items():
        site = _site(name, index, shapes)
        axes = _axes(site, index, shapes) if site is not None and len(shape) in _RANKS else None
        if site is not None and axes is not None:
            size = tuple(shape[axis] for axis in axes)
            values = prod(n for axis, n in enumerate(shape) if axis and axis not in axes)
            found.append(Image(name, site, axes, size, _stride(site, index, shapes), values))
    return tuple(found)


def steps_along(node: NodeProto) -> int:
    """Return the axis that a recurrent layer steps along."""
    return 1 if attribute(node, "layout", 0) else 0


def covers(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether the window of a pooling is the whole of a map that is larger than a point."""
    given = attributes(node)
    return (
        node.op_type in POOLS
        and not any(given.get("pads") or ())
        and tuple(given.get("kernel_shape") or ()) == shape[2:]
        and max(shape[2:], default=1) > 1
    )


def _site(name: str, index: GraphIndex, shapes: Shapes) -> str | None:
    """Return the input, or the real numbers that its only reader makes of it."""
    tensor = name
    while shapes.types.get(tensor) not in FLOATS:
        node = index.only_reader(tensor)
        if node is None or node.op_type not in ("Cast", "DequantizeLinear"):
            return None
        tensor = node.output[0]
    return tensor


def _axes(site: str, index: GraphIndex, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the axes that windows slide along, or recurrent layers step along, longer than 1.

    It is None if there are none, or not always the same ones. No more than two are found.
    """
    places: dict[str, _Place] = {site: tuple(range(len(shapes.shapes[site])))}
    found = set[tuple[int, ...]]()
    for node in index.nodes:
        origin = next((n for n in node.input if n in places), None)
        if origin is None:
            continue
        place, before = places[origin], shapes.shapes[origin]
        if node.op_type in _SLIDE | POOLS:
            found.add(_longer(place[2:], before[2:]))
        elif node.op_type in RECURRENT:
            step = steps_along(node)
            found.add(_longer(place[step : step + 1], before[step : step + 1]))
        elif node.op_type == "Transpose":
            order = attribute(node, "perm", range(len(place))[::-1])
            places[node.output[0]] = tuple(place[axis] for axis in order)
        elif node.op_type in _ONES:
            made = shapes.shapes.get(node.output[0], ())
            if [n for n in made if n != 1] == [n for n in before if n != 1]:
                kept = iter([axis for axis, n in zip(place, before, strict=True) if n != 1])
                places[node.output[0]] = tuple(None if n == 1 else next(kept) for n in made)
        else:
            same = node.op_type in _PASS
            for output in filter(None, node.output):
                made = shapes.shapes.get(output, ())
                if len(made) == len(before) and (same or (node.op_type not in _MIX and made == before)):
                    places[output] = place
    axes = found.pop() if len(found) == 1 else ()
    return axes if 1 <= len(axes) <= 2 else None


def _longer(place: _Place, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis, n in zip(place, sizes, strict=True) if axis is not None and n > 1)


def _stride(site: str, index: GraphIndex, shapes: Shapes) -> int:
    """Return the largest product of strides along a path from a tensor."""
    strides = {site: 1}
    for node in index.nodes:
        before = max((strides[name] for name in node.input if name in strides), default=None)
        if before is None:
            continue
        if node.op_type in _SLIDE | POOLS and not covers(node, shapes.shapes.get(node.input[0], ())):
            before *= max(attribute(node, "strides", (1,)))
        if node.op_type in _ENLARGE:
            sizes = zip(shapes.shapes.get(node.input[0], ()), shapes.shapes.get(node.output[0], ()), strict=False)
            before = max(1, round(before / max((m / n for n, m in sizes if n), default=1)))
        strides.update(dict.fromkeys(filter(None, node.output), before))
    return max(strides.values())
