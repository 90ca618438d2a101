"""Which nodes make up a layer: a contraction and what follows it, up to the next; and names that survive fusion.

ONNX Runtime fuses nodes, renames them and inserts others. So before a model is profiled each node and each tensor gets
a *tag*, the number of its layer, in front of its name: whatever ONNX Runtime makes of them still carries it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from onnx import ModelProto, NodeProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.channels.values import Shape
from onnxprune.model.checks import captured_names
from onnxprune.model.graph import reads
from onnxprune.model.wire import copy_without
from onnxprune.operators.contractions import contracts, multiply_accumulates
from onnxprune.shapes import Shapes

_TAG = re.compile(r"layer(\d+)\|")
START = "(before the first layer)"


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A contraction and the nodes after it, up to the next contraction.

    Attributes:
        name: the contraction's node.
        op: its operator.
        nodes: positions in the graph of all its nodes.
        macs: multiply-accumulates of one run.
        traffic: bytes that the contraction reads and writes, weights included.
        channels: sizes of the contraction's largest weight; of its output where it has none.
    """

    name: str
    op: str
    nodes: tuple[int, ...]
    macs: int
    traffic: int
    channels: Shape


def partition(proto: ModelProto) -> list[int]:
    """Return the number of the layer that each node belongs to; 0 is what comes before the first contraction.

    A node that is no contraction belongs to the latest layer that it reads from, where it can be fused: a residual sum
    to the branch that is computed last.
    """
    layer_of: dict[str, int] = {}
    found, heads = [], 0
    for node in proto.graph.node:
        if contracts(node):
            heads += 1
            layer = heads
        else:
            layer = max((layer_of.get(name, 0) for name in reads(node)), default=0)
        found.append(layer)
        layer_of.update(dict.fromkeys(node.output, layer))
    return found


def heads(proto: ModelProto) -> list[str]:
    """Return the names of the contractions, in order: those of the layers from number 1 on."""
    return [node.name or node.output[0] for node in proto.graph.node if contracts(node)]


def layers(proto: ModelProto, shapes: Shapes) -> list[TimedLayer]:
    """List the layers of a model, number 0 first.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
    """
    members: dict[int, list[int]] = {}
    for position, layer in enumerate(partition(proto)):
        members.setdefault(layer, []).append(position)
    weights = {t.name for t in proto.graph.initializer}
    made = [TimedLayer(START, "", tuple(members.pop(0, ())), 0, 0, ())]
    for positions in members.values():
        node = proto.graph.node[positions[0]]
        own = max((n for n in node.input if n in weights), key=lambda n: prod(shapes.shapes.get(n, ())), default="")
        shape = shapes.shapes.get(own or node.output[0], ())
        made.append(
            TimedLayer(
                name=node.name or node.output[0],
                op=node.op_type,
                nodes=tuple(positions),
                macs=_macs(node, shapes),
                traffic=sum(_bytes(name, shapes) for name in {*node.input, *node.output}),
                channels=shape,
            )
        )
    return made


def tag(proto: ModelProto) -> ModelProto:
    """Return a copy of a model in which the names of nodes and inner tensors tell their layers."""
    fixed = {o.name for o in proto.graph.output} | {n for node in proto.graph.node for n in captured_names(node)}
    names: dict[str, str] = {}
    tagged = copy_without(proto, "graph")
    tagged.graph.CopyFrom(copy_without(proto.graph, "node", "value_info"))
    for source, layer in zip(proto.graph.node, partition(proto), strict=True):
        node = NodeProto()
        node.CopyFrom(source)
        node.name = f"layer{layer}|{source.name}"
        names.update({o: f"layer{layer}|{o}" for o in source.output if o and o not in fixed})
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        tagged.graph.node.append(node)
    return tagged


def tag_of(names: Iterable[str]) -> int | None:
    """Return the number of the layer that a node belongs to: the latest of those that its names tell, if any does."""
    found = [int(number) for name in names for number in _TAG.findall(name)]
    return max(found, default=None)


def untagged(name: str) -> str:
    """Return a name without the tags in it."""
    return _TAG.sub("", name)


def _macs(node: NodeProto, shapes: Shapes) -> int:
    terms = multiply_accumulates(node, shapes.shapes)
    if terms is None or any(name not in shapes.shapes for name in terms[0]):
        return 0
    names, count = terms
    return count(*(shapes.shapes[name] for name in names))


def _bytes(name: str, shapes: Shapes) -> int:
    if name not in shapes.shapes or name not in shapes.types:
        return 0
    return prod(shapes.shapes[name]) * int(tensor_dtype_to_np_dtype(shapes.types[name]).itemsize)
