"""Shapes of tensors, and work of layers, in any configuration: looked up, not inferred again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.benchmarking.layers import layer_name, layer_nodes
from onnxprune.channels.values import Ids, Mask, Shape
from onnxprune.latency.widths import CandidateWidths, Config
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.shapes import Shapes
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

_NOT_HASHED = (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSOR)


class Sizes:
    """Shapes of a traced model's tensors in any configuration.

    If several groups meet on an axis, the positions that they remove add up. This is exact for axes that hold channels
    side by side, as after Concat, and an approximation for axes that are products of channels.
    """

    def __init__(
        self, graph: ChannelGraph, candidates: Sequence[CandidateWidths], fixed: Mask, tensors: Iterable[str]
    ) -> None:
        """Tabulate what each width of each group removes from each tensor."""
        nothing = PrunedGraph(graph, fixed)
        known = (name for name in tensors if name in graph.values or name in graph.shapes.shapes)
        self._base = {name: nothing.shape(name) for name in known}
        losses: dict[str, dict[int, dict[int, Ids]]] = {}  # by tensor, axis and group, for each width
        touched = _touched(graph, candidates, self._base)
        for index, own in enumerate(candidates):
            shapes: list[dict[str, Shape]] = []
            for units in own.removed:
                removed = fixed.copy()
                removed[units] = True
                kept = PrunedGraph(graph, removed)
                shapes.append({name: kept.shape(name) for name in touched[index]})
            for name in touched[index]:
                lost = np.array(self._base[name]) - np.array([shape[name] for shape in shapes])
                for axis in np.flatnonzero(lost.any(axis=0)).tolist():
                    losses.setdefault(name, {}).setdefault(axis, {})[index] = lost[:, axis]
        self._losses = {
            name: [_Loss.of(axis, by_group) for axis, by_group in axes.items()] for name, axes in losses.items()
        }

    def __contains__(self, tensor: str) -> bool:
        """Whether a tensor's shape is known."""
        return tensor in self._base

    def shape(self, tensor: str, config: Config) -> Shape:
        """Return a tensor's shape in a configuration.

        Raises:
            KeyError: it is unknown.
        """
        shape = list(self._base[tensor])
        for loss in self._losses.get(tensor, ()):
            shape[loss.axis] = max(1, shape[loss.axis] - loss.at(config))
        return tuple(shape)

    def groups(self, tensor: str) -> set[int]:
        """Return the groups that a tensor's shape depends on, as indices of their candidate widths."""
        return {index for loss in self._losses.get(tensor, ()) for index in loss.groups.tolist()}


@dataclass(frozen=True, slots=True, eq=False)
class _Loss:
    """What groups remove from an axis of a tensor: a table of all their widths, concatenated."""

    axis: int
    groups: Ids
    starts: Ids
    table: Ids

    @classmethod
    def of(cls, axis: int, by_group: Mapping[int, Ids]) -> _Loss:
        ends = np.cumsum([0, *map(len, by_group.values())])
        return cls(axis, np.array(list(by_group)), ends[:-1], np.concatenate(list(by_group.values())))

    def at(self, config: Config) -> int:
        return int(self.table[self.starts + config[self.groups]].sum())


def _touched(graph: ChannelGraph, candidates: Sequence[CandidateWidths], tensors: Iterable[str]) -> list[list[str]]:
    """Return the tensors that contain units of each group."""
    group_of = np.full(len(graph.pinned), -1, dtype=np.int64)
    for index, own in enumerate(candidates):
        group_of[own.group.units] = index
    touched: list[list[str]] = [[] for _ in candidates]
    for name in tensors:
        value = graph.values.get(name)
        met = {i for f in (value.factors if value else ()) for i in np.unique(group_of[graph.unit_of[f.ids]]).tolist()}
        for index in met - {-1}:
            touched[index].append(name)
    return touched


@dataclass(frozen=True, slots=True, eq=False)
class LayerWork:
    """A layer of a traced model: a contraction and the nodes after it.

    Attributes:
        name: the contraction's node.
        nodes: all its nodes.
        tensors: the tensors that they read and write.
        itemsizes: bytes per element of each tensor.
        groups: the groups that its shapes depend on, as indices of their candidate widths, ascending.
        operands: the tensors whose shapes determine the contraction's multiply-accumulates.
        count: computes these from the operands' shapes.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    tensors: tuple[str, ...]
    itemsizes: tuple[int, ...]
    groups: tuple[int, ...]
    operands: tuple[str, ...]
    count: Callable[..., int]

    def macs(self, sizes: Sizes, config: Config) -> float:
        """Return the multiply-accumulates of a run."""
        return float(self.count(*(sizes.shape(name, config) for name in self.operands)))

    def traffic(self, sizes: Sizes, config: Config) -> float:
        """Return the bytes that a run reads and writes."""
        pairs = zip(self.tensors, self.itemsizes, strict=True)
        return float(sum(size * prod(sizes.shape(name, config)) for name, size in pairs))

    def signature(self, sizes: Sizes, config: Config) -> str:
        """Return a digest of operators, attributes and shapes. Layers with the same signature take the same time."""
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(f"{node.domain}:{node.op_type}\n".encode())
            for attribute in sorted(node.attribute, key=lambda a: a.name):
                if attribute.type not in _NOT_HASHED:
                    digest.update(attribute.SerializeToString(deterministic=True))
            for name in (*node.input, *node.output):
                digest.update(f"{sizes.shape(name, config) if name in sizes else None}\n".encode())
        return digest.hexdigest()


def tensors_of(proto: ModelProto) -> list[str]:
    """Return the tensors that nodes read and write."""
    return list(dict.fromkeys(n for node in proto.graph.node for n in (*node.input, *node.output) if n))


def works(proto: ModelProto, shapes: Shapes, sizes: Sizes) -> list[LayerWork]:
    """Return the layers of a traced model, without the nodes before the first layer.

    Args:
        proto: the normalized model.
        shapes: its concretized shapes and types.
        sizes: its shapes in any configuration.
    """
    return [_work(nodes, shapes, sizes) for nodes in layer_nodes(proto)[1:]]


def _work(nodes: Sequence[NodeProto], shapes: Shapes, sizes: Sizes) -> LayerWork:
    touched = dict.fromkeys(n for node in nodes for n in (*node.input, *node.output))
    tensors = [n for n in touched if n in sizes and n in shapes.types]
    operands, count = multiply_accumulates(nodes[0], shapes.shapes) or ((), _no_macs)
    if any(name not in sizes for name in operands):
        operands, count = (), _no_macs
    return LayerWork(
        name=layer_name(nodes),
        nodes=tuple(nodes),
        tensors=tuple(tensors),
        itemsizes=tuple(int(tensor_dtype_to_np_dtype(shapes.types[n]).itemsize) for n in tensors),
        groups=tuple(sorted(set().union(*(sizes.groups(n) for n in touched)))),
        operands=operands,
        count=count,
    )


def _no_macs() -> int:
    """Return the multiply-accumulates of a layer of unknown shapes."""
    return 0
