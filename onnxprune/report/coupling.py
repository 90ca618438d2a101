"""Why the channels of a node leave together or not at all: who else has them, what pins them, and over which nodes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
from onnx import NodeProto

from onnxprune.channels.ledger import Pin
from onnxprune.channels.values import Factor, Ids
from onnxprune.errors import UsageError
from onnxprune.report.index import KERNEL, Index
from onnxprune.report.layout import shorten
from onnxprune.trace import ChannelGraph, Group

Role = Literal["output", "input and output", "input", "other"]

_ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Location:
    """Where channels stand: axes of a tensor.

    Attributes:
        tensor: the tensor.
        axes: the axes, more than one where channels stand on them jointly.
    """

    tensor: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partner:
    """A node that makes the same channels.

    Attributes:
        node: the node.
        path: the nodes that tie their channels to its, ends left out.
    """

    node: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coupled:
    """Channels that can leave.

    Attributes:
        group: the group they are in.
        channels: how many they are.
        partners: other nodes that make them; the nearest comes first.
    """

    group: Group
    channels: int
    partners: tuple[Partner, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """Channels that can't leave.

    Attributes:
        pin: the reason.
        channels: how many they are.
        path: the nodes through which they get to what pins them, which is the last.
    """

    pin: Pin
    channels: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of channels of a node.

    Attributes:
        role: whether the node reads or makes them; "other" if what flows in and out shows neither.
        places: the weights' axes on which they stand, or those of the node's data where it has no weights.
        size: how many they are.
        coupled: those that can leave, by group.
        held: those that can't, by reason; the nearest comes first.
    """

    role: Role
    places: tuple[Location, ...]
    size: int
    coupled: tuple[Coupled, ...]
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class HeldAxis:
    """Channels of a weight that a reason pins.

    Attributes:
        nodes: the nodes that read the weight.
        place: the weight's axis.
        channels: how many channels are pinned.
        size: how many the axis has.
        pins: the pins.
    """

    nodes: tuple[str, ...]
    place: Location
    channels: int
    size: int
    pins: tuple[Pin, ...]


def find_node(graph: ChannelGraph, name: str) -> NodeProto:
    """Find a node by its name or by a pattern that fits only one.

    Raises:
        UsageError: there is none (OP606).
    """
    nodes = {node.name: node for node in graph.proto.graph.node}
    if name in nodes:
        return nodes[name]
    fits = [n for n in nodes if fnmatchcase(n, name)]
    if len(fits) == 1:
        return nodes[fits[0]]
    if fits:
        cause = f"{len(fits)} nodes match {name!r}"
        raise UsageError("OP606", cause, hint=f"such as {_some(fits)}")
    near = get_close_matches(name, nodes, n=3, cutoff=0.4)
    hint = f"did you mean {_some(near)}?" if near else "`onnxprune inspect MODEL` lists them"
    raise UsageError("OP606", f"the model has no node {name!r}", hint=hint)


def explain_node(index: Index, node: NodeProto) -> tuple[Axis, ...]:
    """Explain the channels of a node, those it makes first.

    The channels are those of its weights; of a node without weights, those of its inputs and outputs. Sets of equal
    channels, such as a convolution's filters and its biases, are explained once.
    """
    names = [n for n in node.input if index.is_constant(n)] or [*node.output, *node.input]
    found: dict[bytes, tuple[Factor, list[Location]]] = {}
    for name in dict.fromkeys(names):
        for factor in index.factors(name):
            units = index.units(factor)
            if not _only_kernel(index, units):
                place = Location(name, factor.axes)
                found.setdefault(units.tobytes(), (factor, []))[1].append(place)
    axes = [_explain(index, node, factor, tuple(places)) for factor, places in found.values()]
    return tuple(sorted(axes, key=lambda axis: _ROLES.index(axis.role)))


def held_by(index: Index, code: str) -> Iterator[HeldAxis]:
    """List the weights' axes that a reason pins, in the order of the graph."""
    mask = index.pinned_by.get(code)
    if mask is None:
        return
    rank = {node.name: i for i, node in enumerate(index.graph.proto.graph.node)}
    axes = [(w, axis, units) for w in index.weights for axis, units in w.units.items()]
    readers = {w.name: tuple(index.graph.consumers(w.name)) for w in index.weights}
    for weight, axis, units in sorted(axes, key=lambda a: [rank[n] for n in readers[a[0].name]]):
        count = int(np.count_nonzero(mask[units]))
        if count:
            yield HeldAxis(
                nodes=readers[weight.name],
                place=Location(weight.name, (axis,)),
                channels=count,
                size=len(units),
                pins=tuple(p for p, held in index.pins.items() if p.code == code and np.isin(units, held).any()),
            )


def _some(names: Sequence[str]) -> str:
    return " or ".join(shorten(name, 64) for name in names[:3])


def _explain(index: Index, node: NodeProto, factor: Factor, places: tuple[Location, ...]) -> Axis:
    ids = factor.ids.ravel()
    return Axis(
        role=_role(index, node, index.units(factor)),
        places=places,
        size=ids.size,
        coupled=tuple(_coupled(index, node, ids)),
        held=tuple(sorted(_held(index, node, ids), key=lambda h: len(h.path))),
    )


def _role(index: Index, node: NodeProto, units: Ids) -> Role:
    """Tell whether units stand on the data that a node makes, that it reads, or both, as in residual blocks."""
    made, given = (
        any(np.isin(units, index.units(f)).any() for n in names for f in index.factors(n))
        for names in (node.output, [n for n in node.input if not index.is_constant(n)])
    )
    return "input and output" if made and given else "output" if made else "input" if given else "other"


def _coupled(index: Index, node: NodeProto, ids: Ids) -> Iterator[Coupled]:
    graph = index.graph
    group_of = index.group_of[graph.unit_of[ids]]
    for group in (graph.groups[g] for g in np.unique(group_of[group_of >= 0])):
        mine = ids[group_of == group.index]
        goals: dict[str, list[Ids]] = {}
        for slot in group.slots:
            for reader in graph.consumers(slot[0]):
                goals.setdefault(reader, []).append(graph.slots[slot])
        others = [n for n in group.producers if n != node.name]
        partners = (Partner(n, _between(index, mine, np.concatenate(goals[n]), {node.name, n})) for n in others)
        yield Coupled(group, len(mine), tuple(sorted(partners, key=lambda p: len(p.path))))


def _held(index: Index, node: NodeProto, ids: Ids) -> Iterator[Held]:
    units = index.graph.unit_of[ids]
    explained = np.zeros(len(ids), dtype=bool)
    for pin, pinned in index.pins.items():
        mine = np.isin(units, pinned)
        explained |= mine
        if mine.any() and pin.code != KERNEL:
            routes = Routes(index.graph, node.name, units[mine])
            path = routes.to(pinning_node(index.graph, pin) or node.name)
            yield Held(pin, int(np.count_nonzero(mine)), path)
    alone = index.graph.pinned[units] & ~explained
    if alone.any():
        (pin,) = index.graph.pins(int(units[alone][0]))
        yield Held(pin, int(np.count_nonzero(alone)), ())


def _between(index: Index, start: Ids, goal: Ids, ends: set[str]) -> tuple[str, ...]:
    return tuple(name for name in index.graph.path(start, goal) if name not in ends)


def _only_kernel(index: Index, units: Ids) -> bool:
    codes = [code for code, mask in index.pinned_by.items() if mask[units].any()]
    return codes == [KERNEL]


class Routes:
    """The shortest ways from a node to others along tensors that hold some units."""

    def __init__(self, graph: ChannelGraph, start: str, units: Ids) -> None:
        """Search from a node, breadth first; data may be followed either way."""
        self._start = start
        self._before: dict[str, str] = {start: start}
        wanted = np.zeros(len(graph.pinned), dtype=bool)
        wanted[units] = True
        nodes = {node.name: node for node in graph.proto.graph.node}
        at: dict[str, list[str]] = {}
        for node in nodes.values():
            for tensor in dict.fromkeys((*node.input, *node.output)):
                value = graph.values.get(tensor)
                if value is not None and any(wanted[graph.unit_of[f.ids]].any() for f in value.factors):
                    at.setdefault(tensor, []).append(node.name)
        queue = deque([start])
        while queue:
            here = queue.popleft()
            for tensor in (*nodes[here].output, *nodes[here].input):
                for name in at.pop(tensor, ()):
                    if name not in self._before:
                        self._before[name] = here
                        queue.append(name)

    def to(self, end: str) -> tuple[str, ...]:
        """Return the nodes after the first, up to and including the last; none if there is no way."""
        way = []
        at = end if end in self._before else self._start
        while at != self._start:
            way.append(at)
            at = self._before[at]
        return tuple(reversed(way))


def pinning_node(graph: ChannelGraph, pin: Pin) -> str | None:
    """Return the name of the node that pins, or that makes the graph output or tensor that does."""
    quoted = re.search(r'"(.*)"$', pin.node)
    name = quoted[1] if quoted else pin.node
    makers = {output: node.name for node in graph.proto.graph.node for output in node.output}
    return name if name in makers.values() else makers.get(name)
