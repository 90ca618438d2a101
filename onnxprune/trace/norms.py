"""Nodes that treat channels one by one, but needn't: normalizations, scales and means that other weights can take over.

A LayerNormalization that only layers read is the same for every orthogonal basis once its scale and shift are in the
weights of these layers, and the mean over channels is taken out of the weights of those that write to its input: what
is left divides by the root of the mean square. So is one that an exporter wrote as several nodes. The scale of a
residual branch goes into the layer that writes it.
(S. Ashkboos et al., "SliceGPT", ICLR 2024, section 3.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from onnx import NodeProto

from onnxprune.channels.values import Ids
from onnxprune.model.graph import OF_SHAPE, GraphIndex, attribute
from onnxprune.operators.card import Alike, card_of
from onnxprune.operators.linear import LinearLayer
from onnxprune.operators.node import Node
from onnxprune.shapes import Shapes
from onnxprune.trace.places import Place

Role = Literal["norm", "square", "size", "mean", "center", "scale"]

_SIZES = {"ReduceSumSquare", "ReduceL2"}
_REDUCES = {"ReduceMean", "ReduceSum"}


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A node that treats channels one by one until other weights take that over.

    Attributes:
        node: a normalization, a product with a scale, or the subtraction of the mean.
        centers: whether it subtracts the mean. Whatever is added up to its input must have none then.
        scale: the initializer that it multiplies channels by, and its position of each channel; None without.
        shift: the one that is added then, likewise.
        add: the node that adds the shift, if the node itself doesn't.
        readers: the layers that read the result, whose weights take over scale and shift.
        writers: the weights and biases that take over the scale instead.
    """

    node: NodeProto
    centers: bool = False
    scale: tuple[str, Ids] | None = None
    shift: tuple[str, Ids] | None = None
    add: NodeProto | None = None
    readers: tuple[LinearLayer, ...] = ()
    writers: tuple[str, ...] = ()

    @property
    def own(self) -> frozenset[str]:
        """The names of scale and shift."""
        return frozenset(vector[0] for vector in (self.scale, self.shift) if vector is not None)


class Norms:
    """Finds what has to be folded before the basis of groups of channels can change.

    Attributes:
        folds: what was found for each group, by its index.
    """

    def __init__(
        self,
        tensors: GraphIndex,
        shapes: Shapes,
        layer: Callable[[NodeProto], LinearLayer | None],
        on: Callable[[str], Mapping[int, Sequence[Place | None]]],
    ) -> None:
        """Take a graph.

        Args:
            tensors: the graph.
            shapes: its concretized shapes.
            layer: returns a node as a layer, if it is one.
            on: returns where a tensor has the channels of which groups.
        """
        self.tensors, self.shapes, self.layer, self.on = tensors, shapes, layer, on
        self.folds: dict[int, list[Fold]] = {}
        self._read: dict[int, list[tuple[NodeProto, str]]] = {}

    def role(self, node: NodeProto) -> Role | None:
        """Return what a node does in a normalization; None if it is none's part.

        It normalizes ("norm"), squares ("square"), reduces squares ("size"), takes a mean that is subtracted ("mean"),
        subtracts it ("center") or multiplies by an initializer ("scale").
        """
        tensors = self.tensors
        if card_of(node.domain, node.op_type).normalizes is not None:
            return "norm"
        if self._squares(node):
            readers = tensors.readers.get(node.output[0], [])
            return "square" if readers and all(reader.op_type in _REDUCES for reader in readers) else None
        if node.op_type in _SIZES:
            return "size"
        if node.op_type in _REDUCES:
            maker = tensors.makers.get(node.input[0])
            if maker is not None and self._squares(maker):
                return "size"
            readers = tensors.readers.get(node.output[0], [])
            return "mean" if readers and all(map(self._centers, readers)) else None
        if self._centers(node):
            return "center"
        scaled = node.op_type == "Mul" and sum(name in tensors.initializers for name in node.input) == 1
        return "scale" if scaled else None

    def note_reader(self, node: NodeProto, tensor: str, index: int) -> None:
        """Keep in mind that a node combines the channels of a group in a tensor."""
        self._read.setdefault(index, []).append((node, tensor))

    def reason(self, node: NodeProto, role: Role, index: int, channels: int, axis: int | None) -> str | None:
        """Return why a part of a normalization isn't indifferent to the basis, nor becomes so; None if it is or does.

        Args:
            node: the node.
            role: its role.
            index: the group.
            channels: the group's number of channels.
            axis: the axis of its first input along which they lie; None if there are several.
        """
        if role in ("norm", "size", "mean"):
            shape = self.shapes.shapes[node.input[0]]
            if axis is None or self._axes(node) != [axis] or shape[axis] != channels:
                return "is taken over something else as well"
        if role in ("square", "mean"):
            return None
        centers = role == "center" or card_of(node.domain, node.op_type).normalizes == "deviation"
        if role == "size" or (role == "norm" and not centers):
            self.note_reader(node, node.input[0], index)
        if role == "size":
            return None
        if role == "norm" and not all(name in self.tensors.initializers for name in node.input[1:] if name):
            return "has a scale or shift that isn't a weight"
        if any(self.tensors.readers.get(name) or name in self.tensors.outputs for name in node.output[1:]):
            return "has statistics that are used elsewhere"
        fold = Fold(node, centers) if role == "center" else self._fold(node, index, centers)
        if fold is None:
            return "multiplies channel by channel, and more than layers read that"
        self.folds.setdefault(index, []).append(fold)
        return None

    def needs_mean(self, index: int) -> tuple[NodeProto, str] | None:
        """Return what reads a group's channels with the mean that a fold takes out of what writes to them, and why."""
        folds = self.folds.get(index, [])
        centers = {fold.node.name for fold in folds if fold.centers}
        own = frozenset[str]().union(*(fold.own for fold in folds))
        without = set[str]()  # the tensors whose channels have no mean in the original either
        for node in self.tensors.nodes if centers else ():
            read = [name for name in node.input if index in self.on(name) and name not in own]
            if node.name in centers or (self.layer(node) is None and read and without.issuperset(read)):
                without.update(name for name in node.output if index in self.on(name))
        for node, name in self._read.get(index, []) if centers else ():
            if name not in without:
                return node, f'needs the mean that "{min(centers)}" subtracts'
            layer = self.layer(node)
            if layer is not None and self.tensors.uses[layer.weight] > 1:
                return node, "has a weight that is used elsewhere, too"
        return None

    def _fold(self, node: NodeProto, index: int, centers: bool) -> Fold | None:
        """Return what a scale and a shift are that other weights can take over; None if none can."""
        tensors = self.tensors
        vectors = [name for name in node.input if name in tensors.initializers]
        name, add = node.output[0], None
        if len(vectors) == 1 and (added := self._added(name)) is not None and index in self.on(added[1]):
            add, name = added[0], added[0].output[0]
            vectors.append(added[1])
        own = [(vector, order) for vector in vectors if (order := self._order(vector, index)) is not None]
        if len(own) < len(vectors) or len(own) > 2 or any(tensors.uses[vector] > 1 for vector in vectors):
            return None
        scale, shift = (*own, None, None)[:2]
        readers = self._readers(name, shifted=shift is not None)
        if readers is not None:
            return Fold(node, centers, scale, shift, add, readers)
        (x,) = (name for name in node.input[:2] if name not in vectors)
        writers = self._writers(x, index) if node.op_type == "Mul" else None
        return None if writers is None else Fold(node, scale=scale, writers=writers)

    def _order(self, name: str, index: int) -> Ids | None:
        """Return the position of each channel in an initializer that has nothing else; None for others."""
        places = self.on(name).get(index, [])
        place = places[0] if len(places) == 1 else None
        if place is None or prod(self.shapes.shapes[name]) != place.grid.shape[2]:
            return None
        return place.grid[0, 0, :, 0]

    def _readers(self, name: str, *, shifted: bool) -> tuple[LinearLayer, ...] | None:
        """Return the layers that read a tensor, also a part of it or moved; None if anything else does.

        Args:
            name: the tensor.
            shifted: whether a number for each channel is added to the tensor: padding and sums must not change it.
        """
        tensors, found = self.tensors, list[LinearLayer]()
        if name in tensors.outputs:
            return None
        for node in tensors.readers.get(name, []):
            layer, alike = self.layer(node), _alike(node)
            if node.op_type in OF_SHAPE:
                continue
            if layer is not None and layer.x == name:
                plain = set(layer.kernel) <= {1} and not any(attribute(node, "pads", ()))
                if tensors.uses[layer.weight] > 1 or layer.groups > 1 or (shifted and not plain):
                    return None
                found.append(layer)
            elif (alike == "mean" or (alike == "data" and not shifted)) and node.input[0] == name:
                for output in filter(None, node.output):
                    behind = self._readers(output, shifted=shifted)
                    if behind is None:
                        return None
                    found += behind
            else:
                return None
        return tuple(found)

    def _writers(self, name: str, index: int) -> tuple[str, ...] | None:
        """Return the weights and biases of the layers that a tensor is the sum of; None if anything else is in it."""
        tensors, node = self.tensors, self.tensors.makers.get(name)
        if name in tensors.initializers:
            return (name,) if tensors.uses[name] == 1 and index in self.on(name) else None
        if node is None or tensors.uses[name] > 1:
            return None
        layer, alike = self.layer(node), _alike(node)
        if layer is not None:
            own = tuple(filter(None, (layer.weight, layer.bias)))
            return own if all(tensors.uses[weight] == 1 for weight in own) and layer.groups == 1 else None
        if alike == "sum":
            parts = [self._writers(operand, index) for operand in node.input]
            return None if None in parts else tuple(w for part in parts if part is not None for w in part)
        return self._writers(node.input[0], index) if alike in ("mean", "data") else None

    def _added(self, name: str) -> tuple[NodeProto, str] | None:
        """Return the node that adds an initializer to a tensor that nothing else reads, and the initializer."""
        node = self.tensors.only_reader(name)
        if node is None or node.op_type != "Add":
            return None
        other = next((operand for operand in node.input if operand != name), name)
        return (node, other) if other in self.tensors.initializers else None

    def _axes(self, node: NodeProto) -> list[int]:
        """Return the axes over which a node takes statistics, ascending."""
        rank = len(self.shapes.shapes[node.input[0]])
        if card_of(node.domain, node.op_type).normalizes is not None:
            return list(range(attribute(node, "axis", -1) % rank, rank))
        given = attribute(node, "axes")
        if given is None and len(node.input) > 1 and node.input[1]:
            given = self.shapes.values.get(node.input[1])
        return sorted(int(axis) % rank for axis in (range(rank) if given is None else np.ravel(given)))

    def _squares(self, node: NodeProto) -> bool:
        if node.op_type == "Pow":
            exponent = self.shapes.values.get(node.input[1])
            return exponent is not None and bool(np.all(exponent == 2))
        return node.op_type == "Mul" and node.input[0] == node.input[1]

    def _centers(self, node: NodeProto) -> bool:
        maker = self.tensors.makers.get(node.input[1]) if node.op_type == "Sub" else None
        if maker is None or maker.op_type != "ReduceMean" or maker.output[0] in self.tensors.outputs:
            return False
        return maker.input[0] == node.input[0]


def _alike(node: NodeProto) -> Alike | None:
    return card_of(node.domain, node.op_type).alike_at(Node(node))
