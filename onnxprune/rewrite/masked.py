"""Build the masked original, the reference that a pruned model is compared with, without the rewriter.

Every removed slice of every initializer is set to zero, and so is the branch of a removed residual block. Operators
that take statistics over channels (a LayerNorm, a mean over channels) would include those zeros, so they run on the
remaining channels: gathered before the node and scattered after it.
"""

from __future__ import annotations

from itertools import count

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.channels.values import Mask
from onnxprune.model.bodies import mark_alike
from onnxprune.model.graph import attribute
from onnxprune.model.tensors import by_group, set_tensor
from onnxprune.operators.card import card_of
from onnxprune.operators.node import Node
from onnxprune.trace.pruned_graph import Block, PrunedGraph


def masked(kept: PrunedGraph, *, readers_only: bool = False) -> ModelProto:
    """Return the normalized original with everything that was removed set to zero.

    Args:
        kept: the traced model and what was removed from it.
        readers_only: zero only the weights that read removed channels. This is equivalent, and needed where a zero
            would produce NaN or infinity (x / 0, log 0).
    """
    model = ModelProto()
    model.CopyFrom(kept.original.proto)
    for block in kept.blocks:
        _disconnect(block, model, kept.original.shapes.types[block.branch])
    zeros = _zeros(kept)
    removed = kept.positions()
    for tensor in model.graph.initializer:
        if tensor.name not in removed:
            continue
        array = np.array(numpy_helper.to_array(tensor))
        zero = np.broadcast_to(zeros.get(tensor.name, np.zeros((), array.dtype)), array.shape)
        for axis, positions in removed[tensor.name].items():
            if readers_only and (tensor.name, axis) not in kept.graph.summed:
                continue
            if groups := kept.graph.per_group.get((tensor.name, axis)):
                per_group = by_group(array, groups)
                per_group[positions] = by_group(zero, groups)[positions]
                array = by_group(per_group, groups)
            else:
                removal = (slice(None),) * axis + (positions,)
                array[removal] = zero[removal]
        set_tensor(tensor, array)
    statistical = {a for g in kept.graph.groups if kept.removed[g.units].any() for a in g.statistics}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += _on_remaining(node, kept, model) if node.name in statistical else [node]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def _zeros(kept: PrunedGraph) -> dict[str, np.ndarray]:
    """Return the zero points of quantized weights, ready to broadcast against them."""
    graph = kept.graph
    zeros: dict[str, np.ndarray] = {}
    for node in graph.proto.graph.node:
        card = card_of(node.domain, node.op_type)
        if card.zero_bytes is not None:
            bytes_of = card.zero_bytes(Node(node)).items()
            zeros.update((node.input[i], np.array(byte, np.uint8)) for i, byte in bytes_of if i < len(node.input))
        for data, zero, axis in card.zero_points:
            point = graph.shapes.values.get(node.input[zero]) if zero < len(node.input) else None
            shape = graph.shapes.shapes.get(node.input[data])
            if point is not None and shape is not None and node.input[data] in graph.values:
                axis = 0 if attribute(node, "transB") else attribute(node, "axis", axis)
                zeros[node.input[data]] = _spread(point, shape, axis)
    return zeros


def _spread(point: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Broadcast a zero point, given for all positions, for each of an axis, or for each block."""
    if point.size == 1:
        return point.reshape(())
    if point.ndim == 1:
        return point.reshape([-1 if d == axis % len(shape) else 1 for d in range(len(shape))])
    if point.ndim < len(shape):  # of each direction, for each column
        return np.expand_dims(point, 1)
    block = -(-shape[axis] // point.shape[axis])
    return np.take(np.repeat(point, block, axis), range(shape[axis]), axis)


def _disconnect(block: Block, model: ModelProto, kind: int) -> None:
    """Replace the branch of a residual block by zero."""
    node = next(n for n in model.graph.node if n.name == block.name)
    zero = f"{block.name}::zero"
    model.graph.initializer.append(helper.make_tensor(zero, kind, [], [0]))
    node.input[:] = [zero if name == block.branch else name for name in node.input]


def _on_remaining(node: NodeProto, kept: PrunedGraph, model: ModelProto) -> list[NodeProto]:
    """Run a node on the remaining channels: gather, compute, scatter."""
    inner = NodeProto()
    inner.CopyFrom(node)
    _fix_attributes(inner, kept)
    names = (f"{node.name}::masked{i}" for i in count())
    before: list[NodeProto] = []
    after: list[NodeProto] = []

    def gather(data: str, index: np.ndarray, axis: int, out: str) -> NodeProto:
        indices = next(names)
        model.graph.initializer.append(numpy_helper.from_array(index, indices))
        return helper.make_node("Gather", [data, indices], [out], name=out, axis=axis)

    for i, name in enumerate(node.input):
        for axis, mask in _partial(kept, name):
            out = next(names)
            before.append(gather(inner.input[i], np.flatnonzero(mask), axis, out))
            inner.input[i] = out
    for i, name in enumerate(node.output):
        small = name
        partial = _partial(kept, name)
        for last, (axis, mask) in enumerate(partial, start=1 - len(partial)):
            if small == name:
                small = inner.output[i] = next(names)
            # Removed positions are filled with a copy of a kept one; nothing reads them.
            out = next(names) if last else name
            after.append(gather(small, np.where(mask, np.cumsum(mask) - 1, 0), axis, out))
            small = out
    mark_alike(node, [*before, *after])
    return [*before, inner, *after]


def _fix_attributes(node: NodeProto, kept: PrunedGraph) -> None:
    """Make an attention scale its scores by the original width of its heads, and choose no more experts than remain."""
    if node.op_type in ("MoE", "QMoE") and (remaining := kept.shape(node.input[1])[-1]) < (attribute(node, "k") or 1):
        next(a for a in node.attribute if a.name == "k").i = remaining
    attends = node.op_type in ("Attention", "MultiHeadAttention")
    if attends and attribute(node, "scale") is None:
        shape = kept.graph.shapes.shapes[node.input[0]]
        heads = attribute(node, "num_heads") or attribute(node, "q_num_heads")
        width = shape[3] if len(shape) == 4 else shape[2] // heads
        node.attribute.append(helper.make_attribute("scale", float(width**-0.5)))


def _partial(kept: PrunedGraph, tensor: str) -> list[tuple[int, Mask]]:
    for block in reversed(kept.blocks):  # only the skip remains of a block's sum
        tensor = block.skip if tensor == block.output else tensor
    value = kept.graph.values.get(tensor)
    axes = range(len(value.shape)) if value is not None else ()
    masks = [(axis, kept.mask(tensor, axis)) for axis in axes]
    return [(axis, mask) for axis, mask in masks if mask is not None and not mask.all()]
