"""Find the inputs that are images: those that a convolution or pooling slides over, with the axes it slides along."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.graph import GraphIndex, attribute, attributes
from onnxprune.shapes import Shapes

_SLIDE = {"Conv", "ConvInteger", "FusedConv", "QLinearConv"}
POOLS = {"AveragePool", "LpPool", "MaxPool", "QLinearAveragePool"}
_PASS = {"Concat", "Pad", "Slice", "Split"}  # may change sizes, and keep every axis in its place
_ENLARGE = {"ConvTranspose", "DepthToSpace", "Resize", "Upsample"}
_MIX = {"Flatten", "Gemm", "MatMul", "Reshape", "Transpose"}  # may give the same shape another meaning
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Image:
    """An input that is an image.

    Attributes:
        name: the input.
        site: the tensor to resize: the input, or the numbers that its bytes are converted to.
        axes: the axes of height and width.
        size: height and width.
        stride: by how much the network reduces them with strides, all in all.
    """

    name: str
    site: str
    axes: tuple[int, int]
    size: tuple[int, int]
    stride: int


def find_images(proto: ModelProto, shapes: Shapes) -> tuple[Image, ...]:
    """Return the inputs of a normalized model that are images of real numbers, or become so at once."""
    index, found = GraphIndex(proto.graph), []
    for name, shape in shapes.inputs.items():
        site = _site(name, index, shapes)
        axes = _axes(site, index, shapes) if site is not None and len(shape) == 4 else None
        if site is not None and axes is not None and min(shape[axes[0]], shape[axes[1]]) > 1:
            found.append(Image(name, site, axes, (shape[axes[0]], shape[axes[1]]), _stride(site, index, shapes)))
    return tuple(found)


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


def _axes(site: str, index: GraphIndex, shapes: Shapes) -> tuple[int, int] | None:
    """Return the axes of a tensor that windows slide along; None if none do, or not always the same ones."""
    places, found = {site: (0, 1, 2, 3)}, set[tuple[int, int]]()
    for node in index.nodes:
        origin = next((n for n in node.input if n in places), None)
        if origin is None:
            continue
        place = places[origin]
        if node.op_type in _SLIDE | POOLS:
            found.add((place[2], place[3]))
        elif node.op_type == "Transpose":
            order = attribute(node, "perm", (3, 2, 1, 0))
            places[node.output[0]] = tuple(place[axis] for axis in order)  # type: ignore[assignment]
        else:
            same = node.op_type in _PASS
            for output in filter(None, node.output):
                if len(shapes.shapes.get(output, ())) == 4 and (
                    same or (node.op_type not in _MIX and shapes.shapes[output] == shapes.shapes.get(origin))
                ):
                    places[output] = place
    return found.pop() if len(found) == 1 else None


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
