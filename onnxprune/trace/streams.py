"""Find the groups of channels whose basis can be changed: only linear operators touch them, and all of them alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.channels.values import Ids
from onnxprune.model.bodies import in_body
from onnxprune.model.graph import OF_SHAPE, GraphIndex
from onnxprune.operators.card import Alike, card_of
from onnxprune.operators.linear import LinearLayer
from onnxprune.operators.node import Node
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.norms import Fold, Norms
from onnxprune.trace.places import Place, Places
from onnxprune.trace.products import Product, terms_of

Slot = tuple[str, int]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)  # others would be rounded too coarsely
_LARGEST = 8192  # channels; an orthogonal matrix of them is computed and stored


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A group of channels whose basis can be changed.

    Attributes:
        group: the group.
        slots: the weight axes that its channels lie along, as (initializer, axis): the position of each channel of each
            head there, shape (heads, copies, channels) each. Along the first one positions of a head ascend. Channels
            behind each other in different heads are one unit; without heads there is one. There are several copies
            where one weight makes queries and keys. Scales and shifts that other weights take over aren't among them.
        units: the unit of each channel, shape (channels,).
        products: the products of two activations that sum over its channels.
        folds: the nodes that treat channels one by one until other weights take that over.
    """

    group: Group
    slots: Mapping[Slot, Ids]
    units: Ids
    products: tuple[Product, ...] = ()
    folds: tuple[Fold, ...] = ()

    @property
    def centered(self) -> bool:
        """Whether what is added up to the channels must have no mean over them."""
        return any(fold.centers for fold in self.folds)

    @property
    def key(self) -> Slot:
        """The weight axis that the group is named by in plans."""
        return next(iter(self.slots))

    @property
    def size(self) -> int:
        """The number of channels of each head."""
        return len(self.units)

    @property
    def heads(self) -> int:
        """The number of heads."""
        return len(next(iter(self.slots.values())))


@dataclass(frozen=True, slots=True)
class Fixed:
    """Why the basis of a group's channels can't be changed.

    Attributes:
        node: the node that is in the way; empty if a weight is.
        reason: why, as a clause.
    """

    node: str
    reason: str

    def __str__(self) -> str:
        """Return the reason, with the node's operator and name in front."""
        return f"{self.node} {self.reason}" if self.node else self.reason


def find_streams(graph: ChannelGraph) -> tuple[Mapping[int, Stream], Mapping[int, Fixed]]:
    """Return the groups whose basis can be changed, and why that of the others can't, both by the group's index."""
    finder = _Finder(graph)
    fixed = dict(finder.fixed())
    streams = dict[int, Stream]()
    for group in graph.groups:
        if group.index not in fixed:
            found = finder.stream(group, {stream.key for stream in streams.values()})
            if isinstance(found, Stream):
                streams[group.index] = found
            else:
                fixed[group.index] = found
    return streams, fixed


_Places = list[Place | None]  # where a tensor has a group's channels, None for a place that isn't whole


class _Finder:
    def __init__(self, graph: ChannelGraph) -> None:
        self.graph, self.places = graph, Places(graph)
        self.owner = np.full(graph.unit_count, -1, dtype=np.int64)
        for group in graph.groups:
            self.owner[group.units] = group.index
        self.known: dict[str, dict[int, _Places]] = {}
        self.products: dict[int, list[Product]] = {}
        self.norms = Norms(GraphIndex(graph.proto.graph), graph.shapes, self.layer, self.on)

    @cached_property
    def types(self) -> Mapping[str, int]:
        return {t.name: t.data_type for t in self.graph.proto.graph.initializer}

    def fixed(self) -> Iterator[tuple[int, Fixed]]:
        """Yield the groups that a node, an input or an output pins to their basis, each once."""
        found = set[int]()
        for group in self.graph.groups:
            why = None
            notes = [note for note in group.approximations if note.node not in self.known_statistics]
            heads = self.places.heads(group) if self.by_width and group.width > 1 else ()
            if group.sets.shape[1] > 1 or (group.width > 1 and not len(heads)):
                why = "a channel has several positions on an axis, as behind Flatten, in groups or in whole heads"
            elif notes:
                why = f"{notes[0].reason}, by {notes[0].node}"
            elif not 1 < len(group.units) <= _LARGEST:
                why = f"there are more than {_LARGEST} channels" if len(group.units) > 1 else "there is one channel"
            if why is not None:
                found.add(group.index)
                yield group.index, Fixed("", why)
        for entry in (*self.graph.proto.graph.input, *self.graph.proto.graph.output):
            if entry.name not in self.types:
                for index in self.on(entry.name).keys() - found:
                    found.add(index)
                    yield index, Fixed(f'"{entry.name}"', "is an input or output of the model")
        for node in self.graph.proto.graph.node:
            for index in {g for name in (*node.input, *node.output) for g in self.on(name)} - found:
                reason = self.reason(node, index)
                if reason is not None:
                    found.add(index)
                    yield index, Fixed(Node(node).label, reason)

    def stream(self, group: Group, taken: Collection[Slot]) -> Stream | Fixed:
        """Return a group that no node pins as a stream, or which weight isn't one whose channels can be mixed.

        Args:
            group: the group.
            taken: the weight axes that others are named by: a weight may have queries and keys as well as values.
        """
        slots = {}
        for tensor, axis in group.slots:
            place = None if (tensor, axis) in self.graph.per_group else self.places.of_weight(tensor, axis, group)
            if place is None:
                return Fixed("", f'"{tensor}" doesn\'t have each channel once along axis {axis}')
            if self.types.get(tensor) not in _FLOATS:
                return Fixed("", f'"{tensor}" isn\'t of type float32 or float64')
            slots[tensor, axis] = place.grid[..., 0]
        folds = self.norms.folds.get(group.index, [])
        if folds and group.width > 1:
            return Fixed(Node(folds[0].node).label, "treats the channels of each head one by one")
        if (needing := self.norms.needs_mean(group.index)) is not None:
            return Fixed(Node(needing[0]).label, needing[1])
        own = frozenset[str]().union(*(fold.own for fold in folds))
        kept = {slot: order for slot, order in slots.items() if slot[0] not in own}
        key = next((slot for slot in kept if slot not in taken), None)
        if key is None:
            return Fixed("", "all its weights name other groups")
        kept = {key: kept[key], **kept}
        first = np.argsort(kept[key][0, 0])
        ordered = {slot: order[..., first] for slot, order in kept.items()}
        return Stream(
            group,
            ordered,
            np.sort(group.units)[first],
            tuple(self.products.get(group.index, ())),
            tuple(_ordered(fold, first) for fold in folds),
        )

    @property
    def by_width(self) -> bool:
        """Whether a part of every head's width may leave an attention, so that units lie across heads."""
        return self.graph.policies.attention == "width"

    @cached_property
    def known_statistics(self) -> set[str]:
        """The names of the nodes that may be products of two activations, whole attentions, or parts of norms."""
        nodes = self.graph.proto.graph.node
        products = {n.name for n in nodes if self.terms(n) is not None or card_of(n.domain, n.op_type).attends}
        return products | {n.name for n in nodes if self.norms.role(n) is not None}

    def terms(self, node: NodeProto) -> tuple[str, str, str] | None:
        """Return the axes of a product of two operands as letters."""
        shapes = [self.graph.shapes.shapes.get(name) for name in node.input]
        return None if None in shapes else terms_of(node, [len(shape or ()) for shape in shapes])

    def on(self, name: str) -> dict[int, _Places]:
        """Return the groups whose channels a tensor has, and where."""
        value = self.graph.values.get(name)
        if name not in self.known:
            self.known[name] = {}
            for factor in () if value is None else value.factors:
                for index in np.unique(self.owner[self.graph.unit_of[factor.ids]]).tolist():
                    if index >= 0:
                        place = self.places.of(name, factor, self.graph.groups[index])
                        whole = None if place is None or place.channels is None else place
                        self.known[name].setdefault(index, []).append(whole)
        return self.known[name]

    def reason(self, node: NodeProto, index: int) -> str | None:
        """Return why a node that touches a group isn't indifferent to its basis; None if it is."""
        if node.op_type in OF_SHAPE:
            return None
        if in_body(node):
            return "is in a body, which may run many times or not at all"
        inputs = {i: self.on(name)[index] for i, name in enumerate(node.input) if index in self.on(name)}
        outputs = {i: self.on(name)[index] for i, name in enumerate(node.output) if index in self.on(name)}
        if any(None in places for places in (*inputs.values(), *outputs.values())):
            return "divides the channels, or merges them with something else"
        card = card_of(node.domain, node.op_type)
        layer = self.layer(node)
        if layer is not None:
            return self.of_layer(layer, index)
        role = self.norms.role(node)
        if role is not None and (role != "scale" or len(inputs) > 1):
            place = inputs[0][0] if len(inputs.get(0, ())) == 1 else None
            axis = None if place is None else place.channels
            return self.norms.reason(node, role, index, len(self.graph.groups[index].units), axis)
        if (terms := self.terms(node)) is not None and max(map(len, inputs.values()), default=2) == 1:
            return self.of_product(node, terms, index, {i: place for i, (place,) in inputs.items() if place})
        alike = card.alike_at(Node(node))
        if alike is None:
            return "computes an attention in one operator" if card.attends else "isn't linear for all channels alike"
        parted = node.op_type == "Split"  # an output may have other channels
        if not inputs or not outputs or (len(outputs) < len(list(filter(None, node.output))) and not parted):
            return "combines the channels"
        if any(len(places) > 1 for places in (*inputs.values(), *outputs.values())):
            return "has the same channels along two axes"
        return self.of_operands(node, alike, inputs)

    def of_operands(self, node: NodeProto, alike: Alike, inputs: Mapping[int, _Places]) -> str | None:
        """Return why an operator without weights of its own that is linear isn't indifferent to the basis, if so."""
        given = [i for i, name in enumerate(node.input) if name]
        if alike == "sum":
            return None if set(inputs) == set(given) else "adds something that doesn't have these channels"
        if alike in ("data", "mean"):
            return None if set(inputs) == {0} else "has these channels as a parameter"
        if set(inputs) not in ({0}, {1} if node.op_type != "Div" else {0}):
            return "multiplies channel by channel"
        ((place, (found,)),) = inputs.items()
        axis = None if found is None else found.channels
        if node.op_type in ("Mul", "Div"):  # the other operand must be the same for all channels
            shapes = [self.graph.shapes.shapes.get(name) for name in node.input[:2]]
            mine, other = shapes[place], shapes[1 - place]
            if mine is None or other is None or axis is None:
                return "multiplies by something of unknown shape"
            at = axis - len(mine) + len(other)
            if at >= 0 and other[at] != 1:
                return "multiplies channel by channel"
        return None

    def of_product(
        self, node: NodeProto, terms: tuple[str, str, str], index: int, inputs: Mapping[int, Place]
    ) -> str | None:
        """Return why a product of two activations isn't indifferent to the basis; None if it is.

        It is if it sums over the channels of both, head by head, or if one of them has the channels and the result too.
        """
        channels = {terms[i][place.channels] for i, place in inputs.items() if place.channels is not None}
        if any(place.copies > 1 for place in inputs.values()):
            return "has several copies of the channels of a head"
        if len(inputs) == 1:
            return None if channels.issubset(terms[2]) else "combines the channels"
        heads = {terms[i][place.heads] if place.heads is not None else "" for i, place in inputs.items()}
        several = self.graph.groups[index].width > 1
        if len(channels) > 1 or not channels.isdisjoint(terms[2]):
            return "multiplies channel by channel"
        if len(heads) > 1 or (several and not heads.issubset(terms[2])) or heads == channels:
            return "sums over channels and heads in one"
        for i in inputs:
            self.norms.note_reader(node, node.input[i], index)
        product = Product(node, terms, channels.pop(), heads.pop() if several else "")
        self.products.setdefault(index, []).append(product)
        return None

    def layer(self, node: NodeProto) -> LinearLayer | None:
        """Return a node as a linear map of an activation by an initializer, if it is one."""
        card = card_of(node.domain, node.op_type)
        if card.linear is None or len(node.input) < 2 or node.input[1] not in self.types:
            return None
        return card.linear(Node(node), self.graph.shapes.shapes[node.input[1]])

    def of_layer(self, layer: LinearLayer, index: int) -> str | None:
        """Return why a layer isn't indifferent to the basis of channels that it reads or makes; None if it is."""
        if layer.groups > 1:
            return "is a grouped convolution"
        x, weight, y = (self.axes(name, index) for name in (layer.x, layer.weight, layer.y))
        bias = [] if layer.bias is None else self.axes(layer.bias, index)
        rank = len(self.graph.shapes.shapes[layer.x])
        channels = [rank - 1 if layer.channels_last else 1]
        if any(axes not in ([], channels) for axes in (x, y)) or len(weight) != len(x) + len(y):
            return "mixes positions, and these channels are among them"
        if y and layer.bias is not None and len(bias) != 1:
            return "adds the same number to all channels"
        if x:
            self.norms.note_reader(layer.node, layer.x, index)
        return None

    def axes(self, name: str, index: int) -> list[int | None]:
        """Return the axes along which a tensor has a group's channels."""
        return [None if place is None else place.channels for place in self.on(name).get(index, [])]


def _ordered(fold: Fold, order: Ids) -> Fold:
    """Return a fold whose channels are in another order."""
    scale, shift = ((v[0], v[1][order]) if v is not None else None for v in (fold.scale, fold.shift))
    return replace(fold, scale=scale, shift=shift)
