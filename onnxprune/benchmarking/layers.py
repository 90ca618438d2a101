"""Layers for timing: a contraction and the nodes after it, up to the next; and names that survive fusion.

ONNX Runtime fuses, renames and inserts nodes. Before a model is profiled, the names of nodes and tensors are therefore
prefixed by a *tag*, the number of their layer, which the names that ONNX Runtime derives from them still contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from onnx import ModelProto, NodeProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.channels.values import Shape
from onnxprune.model.bodies import is_body_input, is_open
from onnxprune.model.graph import fixed_names, reads, with_nodes
from onnxprune.operators.contractions import contracts, multiply_accumulates
from onnxprune.shapes import Shapes

_TAG = re.compile(r"layer(\d+)\|")
_STORED = frozenset({"Cast", "DequantizeLinear"})  # what a weight of another type goes through

START = "(before the first layer)"


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A contraction and the nodes after it, up to the next contraction.

    Attributes:
        name: the contraction's node.
        op: its operator.
        macs: multiply-accumulates of one run.
        traffic: bytes that the contraction reads and writes, weights included.
        channels: shape of the contraction's largest weight, or of its output if it has no weight.
    """

    name: str
    op: str
    macs: int
    traffic: int
    channels: Shape


def partition(proto: ModelProto) -> list[int]:
    """Return the layer number of each node; 0 for nodes before the first contraction.

    Other nodes belong to the latest layer that they read from, since they may be fused with it: a residual sum belongs
    to the branch that is computed last.
    """
    layer_of: dict[str, int] = {}
    found, latest = [], 0
    for node in proto.graph.node:
        if contracts(node):
            layer = latest = latest + 1
        else:
            layer = max((layer_of.get(name, 0) for name in reads(node)), default=0)
        found.append(layer)
        layer_of.update(dict.fromkeys(node.output, layer))
    return found


def layer_nodes(proto: ModelProto) -> list[list[NodeProto]]:
    """Return the nodes of each layer, the contraction first. Layer 0 holds the nodes before the first contraction."""
    numbers = partition(proto)
    found: list[list[NodeProto]] = [[] for _ in range(max(numbers, default=0) + 1)]
    for node, layer in zip(proto.graph.node, numbers, strict=True):
        found[layer].append(node)
    return found


def layer_name(nodes: Sequence[NodeProto]) -> str:
    """Return the name of a layer, that of its contraction, from its nodes."""
    return str(nodes[0].name or nodes[0].output[0])


def layers(proto: ModelProto, shapes: Shapes) -> list[TimedLayer]:
    """Return the layers of a model, by their numbers.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
    """
    weights = {t.name for t in proto.graph.initializer}
    for node in proto.graph.node:  # a weight stored in fewer bits is one, too
        if node.op_type in _STORED and node.input and node.input[0] in weights:
            weights.update(node.output)
    made = [TimedLayer(START, "", 0, 0, ())]
    for nodes in layer_nodes(proto)[1:]:
        node = nodes[0]
        own = max((n for n in node.input if n in weights), key=lambda n: prod(shapes.shapes.get(n, ())), default="")
        traffic = sum(_bytes(name, shapes) for name in {*node.input, *node.output})
        shape = shapes.shapes.get(own or node.output[0], ())
        made.append(TimedLayer(layer_name(nodes), node.op_type, _macs(node, shapes), traffic, shape))
    return made


def tag(proto: ModelProto) -> ModelProto:
    """Return a copy of a model in which the names of nodes and inner tensors start with their layers' tags."""
    fixed = fixed_names(proto.graph.output, proto.graph.node)
    tagged, names = with_nodes(proto, proto.graph.node), dict[str, str]()
    for node, layer in zip(tagged.graph.node, partition(proto), strict=True):
        if not is_open(node):  # the nodes of its bodies refer to it; those without a name are told apart
            node.name = f"layer{layer}|{node.name or next(filter(None, node.output), '')}"
        if not is_body_input(node):
            names.update({o: f"layer{layer}|{o}" for o in node.output if o and o not in fixed})
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    del tagged.graph.value_info[:]
    return tagged


def tag_of(names: Iterable[str]) -> int | None:
    """Return the latest layer among the tags in some names, None if there are none."""
    found = [int(number) for name in names for number in _TAG.findall(name)]
    return max(found, default=None)


def untagged(name: str) -> str:
    """Return a name without its tags."""
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
