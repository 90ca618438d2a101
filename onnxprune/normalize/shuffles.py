"""Replace channel shuffles by Gather, which stays correct whichever channels are removed.

Exporters write a shuffle as Reshape, Transpose, Reshape. That chain needs the same positions in every group, which
couples most channels of a network that has many shuffles. A Gather picks each channel by its position and couples none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.channels.values import Factor, Ids, Shape, Value, reshape, transpose
from onnxprune.errors import OnnxPruneError
from onnxprune.model.graph import GraphIndex, attribute
from onnxprune.shapes import Shapes, concretize, concretize_otherwise

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_MERGES = frozenset({"Flatten", "Reshape"})
_LONGEST = 6  # nodes of one shuffle


def merge_shuffles(proto: ModelProto) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Replace chains of data movements that permute one axis and move nothing else.

    A chain is checked at two sizes of every symbolic dimension, so that none is taken for a shuffle by accident.

    Args:
        proto: a model with its constants as initializers; weights aren't read.

    Returns:
        All nodes, and the indices of the new Gathers by name; empty if there are no shuffles.
    """
    chains = list(_chains(proto.graph))
    if not chains:
        return list(proto.graph.node), {}
    try:
        shapes = concretize(proto)
    except OnnxPruneError:  # the tracer will report it, at the sizes that the user gives
        return list(proto.graph.node), {}
    others = concretize_otherwise(proto, shapes) if shapes.symbols else shapes
    if others is None:
        return list(proto.graph.node), {}
    replaced: dict[str, NodeProto] = {}
    positions: dict[str, TensorProto] = {}
    for chain in chains:
        for end in range(2, len(chain) + 1):
            nodes = chain[:end]
            found = _permutation(nodes, shapes)
            if found and _same(found, _permutation(nodes, others)):
                axis, index = found
                name = f"{nodes[-1].output[0]}::shuffle"
                positions[name] = numpy_helper.from_array(index, name)
                inputs = [nodes[0].input[0], name]
                replaced[nodes[-1].name] = helper.make_node(
                    "Gather", inputs, nodes[-1].output, name=nodes[-1].name, axis=axis
                )
                break
    return [replaced.get(node.name, node) for node in proto.graph.node], positions


def _chains(graph: GraphProto) -> Iterator[list[NodeProto]]:
    """Yield the chains of nodes that split, transpose and merge axes; inner results have one reader."""
    index = GraphIndex(graph)
    for start in index.nodes:
        if not _moves(start) or start.op_type == "Transpose":
            continue
        chain = [start]
        while len(chain) < _LONGEST:
            made = chain[-1].output[0]
            reader = index.only_reader(made)
            if reader is None or not _moves(reader) or reader.input[0] != made:
                break
            chain.append(reader)
        operators = [node.op_type for node in chain]
        if "Transpose" in operators and not _MERGES.isdisjoint(operators[operators.index("Transpose") :]):
            yield chain


def _moves(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and (node.op_type == "Transpose" or node.op_type in _RESHAPES)


def _permutation(nodes: Sequence[NodeProto], shapes: Shapes) -> tuple[int, Ids] | None:
    """Return the axis that a chain permutes and the permutation; None if it does anything else."""
    before, after = (shapes.shapes.get(n) for n in (nodes[0].input[0], nodes[-1].output[0]))
    if before is None or before != after:
        return None
    places = [np.arange(n, dtype=np.int64) for n in before]
    value = Value(before, tuple(Factor((a,), p) for a, p in enumerate(places) if len(p) > 1))
    for node in nodes:
        moved = _moved(node, value, shapes.shapes)
        if moved is None:
            return None
        value = moved
    ids = [value.on(a) for a in range(len(before))]
    if any(f is not None and len(f.axes) > 1 for f in ids):
        return None
    changed = [
        (a, f.ids) for a, (f, p) in enumerate(zip(ids, places, strict=True)) if f and not np.array_equal(f.ids, p)
    ]
    permutes = len(changed) == 1 and np.array_equal(np.sort(changed[0][1]), places[changed[0][0]])
    return changed[0] if permutes else None


def _moved(node: NodeProto, value: Value, shapes: Mapping[str, Shape]) -> Value | None:
    if node.op_type == "Transpose":
        return transpose(value, attribute(node, "perm") or range(len(value.shape))[::-1])
    if node.output[0] not in shapes:
        return None
    result = reshape(value, shapes[node.output[0]])
    return None if result.lost or result.single else result.value


def _same(a: tuple[int, Ids], b: tuple[int, Ids] | None) -> bool:
    return b is not None and a[0] == b[0] and np.array_equal(a[1], b[1])
