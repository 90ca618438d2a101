"""Find the residual streams of a vision transformer: tensors of patches on a grid, and what else has a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.channels.values import Shape
from onnxprune.errors import PlanError
from onnxprune.model.bodies import in_body
from onnxprune.model.graph import GraphIndex, attribute, fixed_names
from onnxprune.operators.card import card_of
from onnxprune.operators.elementwise import ELEMENTWISE
from onnxprune.shapes import Shapes, concretize_otherwise
from onnxprune.tokens.flow import Axes, Flow, Ids, Lost, Tokens

Grid = tuple[int, int]

_SUMS = {"Add", "Sum"}
_KEEP = {"BatchNormalization", "Transpose"}  # beside what is elementwise: a map behind them is one still


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A tensor of tokens that a residual block adds to.

    Attributes:
        tensor: its name.
        patches: the patch that each token is, row by row; -1 for a class token and registers.
        grid: the number of rows and columns of patches.
    """

    tensor: str
    patches: Ids
    grid: Grid

    def groups(self, block: Grid) -> Ids:
        """Return the group of each token if blocks of patches merge; others stay by themselves.

        Groups have the order of their first tokens. At the right and lower border, blocks may be smaller.

        Args:
            block: rows and columns of a block.
        """
        columns = -(-self.grid[1] // block[1])
        rows, within = np.divmod(self.patches, self.grid[1])
        keys = (rows // block[0]) * columns + within // block[1]
        keys = np.where(self.patches < 0, -1 - np.arange(len(keys)), keys)
        _, first, ids = np.unique(keys, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first)).astype(np.int64)[ids.reshape(-1)]


def find_streams(proto: ModelProto, shapes: Shapes) -> list[Stream]:
    """Return the residual streams of tokens behind each sum, in order.

    Tokens are the positions of a convolution's map that a Reshape flattens, together with those that a Concat adds.
    None are found if their number depends on the sizes of the inputs.

    Args:
        proto: the normalized model.
        shapes: its concretized shapes.
    """
    index, flow = GraphIndex(proto.graph), Flow(proto, shapes, groups=False)
    maps, along = dict[str, tuple[int, int]](), dict[str, Axes]()
    grids, found = list[tuple[int, Grid]](), list[Stream]()
    for node in index.nodes:
        if in_body(node):
            continue
        for name in node.output:
            if (map_ := _map(node, maps, shapes.shapes)) is not None:
                maps[name] = map_
        flat = _flattened(node, maps, shapes.shapes)
        if flat is not None:
            axis, grid = flat
            start = grids[-1][0] + grids[-1][1][0] * grids[-1][1][1] if grids else 0
            grids.append((start, grid))
            along[node.output[0]] = {axis: Tokens(start + np.arange(grid[0] * grid[1]))}
        elif known := {name: along[name] for name in node.input if name in along}:
            try:
                along.update(flow.outputs(node, known))
            except Lost:
                continue
        if node.op_type in _SUMS and len(node.input) > 1 and all(along.get(name) for name in node.input):
            found += _stream(node.output[0], along, shapes.shapes, grids)
    fixed = fixed_names(proto.graph.output, index.nodes)
    found = [stream for stream in found if stream.tensor not in fixed]
    return found if found and _is_fixed(found, proto, shapes) else []


def _is_fixed(streams: Sequence[Stream], proto: ModelProto, shapes: Shapes) -> bool:
    """Whether the number of tokens is the same at all sizes of the inputs."""
    sizes = [dim for entry in proto.graph.input for dim in entry.type.tensor_type.shape.dim[1:]]
    if all(dim.dim_value > 0 for dim in sizes):
        return True
    other = concretize_otherwise(proto, shapes)
    return other is not None and all(other.shapes.get(s.tensor, ())[-2:-1] == (len(s.patches),) for s in streams)


def stream_named(streams: list[Stream], name: str) -> Stream:
    """Return a stream by its tensor.

    Raises:
        PlanError: there is none (OP307).
    """
    found = next((stream for stream in streams if stream.tensor == name), None)
    if found is None:
        cause = "the plan merges tokens of a tensor that isn't a stream of patches behind a sum"
        raise PlanError("OP307", cause, where=f'tensor "{name}"')
    return found


def _map(node: NodeProto, maps: Mapping[str, tuple[int, int]], shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Return the axes of height and width of a node's output, if it is a convolution's map, or one still."""
    made = shapes.get(node.output[0] if node.output else "", ())
    if node.op_type == "Conv":
        return (2, 3) if len(made) == 4 else None
    origin = next((maps[name] for name in node.input if name in maps), None)
    if origin is None or len(made) != 4:
        return None
    if node.op_type == "Transpose":
        order = list(attribute(node, "perm", (3, 2, 1, 0)))
        return order.index(origin[0]), order.index(origin[1])
    return origin if node.op_type in _KEEP or card_of(node.domain, node.op_type).trace in ELEMENTWISE else None


def _flattened(
    node: NodeProto, maps: Mapping[str, tuple[int, int]], shapes: Mapping[str, Shape]
) -> tuple[int, Grid] | None:
    """Return the axis of tokens that a Reshape makes of height and width, and these."""
    if node.op_type not in ("Flatten", "Reshape") or node.input[0] not in maps:
        return None
    before, made, (row, column) = shapes.get(node.input[0], ()), shapes.get(node.output[0]), maps[node.input[0]]
    flat = (*before[:row], before[row] * before[column], *before[column + 1 :]) if column == row + 1 else None
    return (row, (before[row], before[column])) if made == flat and min(before[row], before[column]) > 1 else None


def _stream(
    tensor: str, along: Mapping[str, Axes], shapes: Mapping[str, Shape], grids: list[tuple[int, Grid]]
) -> Iterator[Stream]:
    """Yield the stream that a tensor is: one axis before the last has all patches of a grid, each once."""
    rank = len(shapes[tensor])
    for axis, tokens in along.get(tensor, {}).items():
        patches = tokens.ids[tokens.ids >= 0]
        for start, grid in grids:
            whole = np.arange(start, start + grid[0] * grid[1])
            if len(along[tensor]) == 1 and axis == rank - 2 and np.array_equal(np.sort(patches), whole):
                yield Stream(tensor, np.where(tokens.ids >= 0, tokens.ids - start, -1), grid)
