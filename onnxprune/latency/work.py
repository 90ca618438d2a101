"""What a layer does in a state of the search: its work, its traffic, and a signature that tells equal layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, ModelProto, NodeProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.benchmarking.layers import partition
from onnxprune.latency.rungs import State
from onnxprune.latency.sizes import Sizes
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.shapes import Shapes

_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A layer of a traced model: a contraction and what follows it.

    Attributes:
        name: the contraction's node.
        nodes: all its nodes.
        tensors: what they read and write.
        itemsizes: bytes of an element of each.
        choices: the choices that its shapes depend on, ascending.
        operands: the tensors whose shapes tell the contraction's work.
        count: gives that work for their shapes.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    tensors: tuple[str, ...]
    itemsizes: tuple[int, ...]
    choices: tuple[int, ...]
    operands: tuple[str, ...]
    count: Callable[..., int]

    def macs(self, sizes: Sizes, state: State) -> float:
        """Return the multiply-accumulates of a run."""
        return float(self.count(*(sizes.shape(name, state) for name in self.operands)))

    def traffic(self, sizes: Sizes, state: State) -> float:
        """Return the bytes of everything that is read and written."""
        pairs = zip(self.tensors, self.itemsizes, strict=True)
        return float(sum(size * prod(sizes.shape(name, state)) for name, size in pairs))

    def signature(self, sizes: Sizes, state: State) -> str:
        """Return a digest of operators, attributes and shapes: layers of the same take the same time."""
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(f"{node.domain}:{node.op_type}\n".encode())
            for attribute in sorted(node.attribute, key=lambda a: a.name):
                if attribute.type not in _SUBGRAPHS and attribute.type != AttributeProto.TENSOR:
                    digest.update(attribute.SerializeToString(deterministic=True))
            for name in (*node.input, *node.output):
                digest.update(f"{sizes.shape(name, state) if name in sizes else None}\n".encode())
        return digest.hexdigest()


def tensors_of(proto: ModelProto) -> list[str]:
    """Return the tensors that nodes read and write."""
    return list(dict.fromkeys(n for node in proto.graph.node for n in (*node.input, *node.output) if n))


def works(proto: ModelProto, shapes: Shapes, sizes: Sizes) -> list[Work]:
    """List the layers of a traced model, without what comes before the first.

    Args:
        proto: the normalized model.
        shapes: its concretized shapes and types.
        sizes: its shapes in every state.
    """
    members: dict[int, list[NodeProto]] = {}
    for node, layer in zip(proto.graph.node, partition(proto), strict=True):
        members.setdefault(layer, []).append(node)
    members.pop(0, None)
    return [_work(nodes, shapes, sizes) for nodes in members.values()]


def _work(nodes: Sequence[NodeProto], shapes: Shapes, sizes: Sizes) -> Work:
    touched = dict.fromkeys(n for node in nodes for n in (*node.input, *node.output))
    tensors = [n for n in touched if n in sizes and n in shapes.types]
    operands, count = multiply_accumulates(nodes[0], shapes.shapes) or ((), _nothing)
    if any(name not in sizes for name in operands):
        operands, count = (), _nothing
    return Work(
        name=nodes[0].name or nodes[0].output[0],
        nodes=tuple(nodes),
        tensors=tuple(tensors),
        itemsizes=tuple(int(tensor_dtype_to_np_dtype(shapes.types[n]).itemsize) for n in tensors),
        choices=tuple(sorted(set().union(*(sizes.choices(n) for n in touched)))),
        operands=operands,
        count=count,
    )


def _nothing() -> int:
    """Count the work of a layer whose shapes aren't known."""
    return 0
