"""Why the channels of a node are removed together or not at all: what they are coupled to, what pins them."""

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
from onnxprune.operators.contractions import layer_of_number
from onnxprune.report.index import KERNEL, Index
from onnxprune.report.layout import shorten
from onnxprune.trace import Group

Role = Literal["output", "input and output", "input", "other"]

_ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Location:
    """Axes of a tensor that channels lie along.

    Attributes:
        tensor: the tensor.
        axes: the axes; more than one where channels lie along them jointly.
    """

    tensor: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partner:
    """A node that makes the same channels.

    Attributes:
        node: the node.
        path: the nodes that couple the channels, both ends excluded.
    """

    node: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coupled:
    """Channels that can be removed.

    Attributes:
        channels: their number.
        group: the group they are in.
        partners: other nodes that make them, the nearest first.
        fixed: why their basis can't be changed; None if it can.
    """

    channels: int
    group: Group
    partners: tuple[Partner, ...]
    fixed: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """Channels that can't be removed.

    Attributes:
        channels: their number.
        pin: the reason.
        path: the nodes from the node itself, excluded, to the one that pins them, included.
    """

    channels: int
    pin: Pin
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of channels of a node.

    Attributes:
        role: whether the node reads or makes them; "other" if they are on neither its data inputs nor its outputs.
        places: the axes they lie along: of the node's weights, or of its data if it has no weights.
        size: their number.
        coupled: those that can be removed, by group.
        held: those that can't, by reason, the nearest first.
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
        channels: number of pinned channels.
        size: length of the axis.
        pins: the pins.
    """

    nodes: tuple[str, ...]
    place: Location
    channels: int
    size: int
    pins: tuple[Pin, ...]


def find_node(index: Index, name: str) -> NodeProto:
    """Return the node with a name, a layer by its number (L17), or the only node that matches a pattern.

    Raises:
        UsageError: no node matches, or several do (OP606).
    """
    nodes = index.nodes
    name = layer_of_number(name, index.graph.proto) or name
    if name in nodes:
        return nodes[name]
    fits = [n for n in nodes if fnmatchcase(n, name)]
    if len(fits) == 1:
        return nodes[fits[0]]
    if fits:
        cause = f"{len(fits)} nodes match {name!r}"
        raise UsageError("OP606", cause, hint=f"such as {_some(fits)}")
    near = get_close_matches(name, nodes, n=3, cutoff=0.4)
    hint = f"did you mean {_some(near)}?" if near else "the command `inspect MODEL` lists them"
    raise UsageError("OP606", f"the model has no node {name!r}", hint=hint)


def explain_node(index: Index, node: NodeProto) -> tuple[Axis, ...]:
    """Return what a node's channels are coupled to and what pins them, output channels first.

    The channels are those of its weights or, without weights, those of its inputs and outputs. Equal sets of channels,
    such as a convolution's filters and biases, are reported once.
    """
    names = [n for n in node.input if index.is_constant(n)] or [*node.output, *node.input]
    found: dict[bytes, tuple[Factor, list[Location]]] = {}
    for name in dict.fromkeys(names):
        for factor in index.factors(name):
            units = index.units(factor)
            if [code for code, mask in index.pinned_by.items() if mask[units].any()] != [KERNEL]:
                _, places = found.setdefault(units.tobytes(), (factor, []))
                places.append(Location(name, factor.axes))
    axes = [_explain(index, node, factor, tuple(places)) for factor, places in found.values()]
    return tuple(sorted(axes, key=lambda axis: _ROLES.index(axis.role)))


def held_by(index: Index, code: str) -> Iterator[HeldAxis]:
    """Return the weights' axes that a reason pins, in graph order."""
    mask = index.pinned_by.get(code)
    if mask is None:
        return
    order = index.tensors.positions
    for weight in sorted(index.weights, key=lambda w: [order[name] for name in w.readers]):
        for axis, units in weight.units.items():
            if pinned := int(np.count_nonzero(mask[units])):
                pins = (p for p, held in index.pins.items() if p.code == code and np.isin(units, held).any())
                yield HeldAxis(weight.readers, Location(weight.name, (axis,)), pinned, len(units), tuple(pins))


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
    """Return whether units are on the data that a node makes, that it reads, or both, as in residual blocks."""
    data = [name for name in node.input if not index.is_constant(name)]
    made, given = (np.isin(units, index.units_on(tensors)).any() for tensors in (node.output, data))
    return "input and output" if made and given else "output" if made else "input" if given else "other"


def _coupled(index: Index, node: NodeProto, ids: Ids) -> Iterator[Coupled]:
    graph = index.graph
    group_of = index.group_of[graph.unit_of[ids]]
    for group in (graph.groups[g] for g in np.unique(group_of[group_of >= 0])):
        mine = ids[group_of == group.index]
        partners = []
        for name in group.producers:
            if name != node.name:
                goal = np.concatenate([graph.slots[slot] for slot in group.slots if name in graph.consumers(slot[0])])
                path = (n for n in graph.path(mine, goal) if n not in (node.name, name))
                partners.append(Partner(name, tuple(path)))
        nearest = tuple(sorted(partners, key=lambda p: len(p.path)))
        yield Coupled(len(mine), group, nearest, index.fixed.get(group.index))


def _held(index: Index, node: NodeProto, ids: Ids) -> Iterator[Held]:
    units = index.graph.unit_of[ids]
    explained = np.zeros(len(ids), dtype=bool)
    for pin, pinned in index.pins.items():
        mine = np.isin(units, pinned)
        explained |= mine
        if mine.any() and pin.code != KERNEL:
            path = _route(index, node.name, pinning_node(index, pin) or node.name, units[mine])
            yield Held(int(np.count_nonzero(mine)), pin, path)
    alone = index.graph.pinned[units] & ~explained
    if alone.any():
        (pin,) = index.graph.pins(int(units[alone][0]))
        yield Held(int(np.count_nonzero(alone)), pin, ())


def _route(index: Index, start: str, end: str, units: Ids) -> tuple[str, ...]:
    """Return the nodes after the first on the shortest path to another, along tensors with some units on them.

    Data is followed in both directions. Empty if there is no path.
    """
    wanted = np.zeros(index.graph.unit_count, dtype=bool)
    wanted[units] = True
    paths: dict[str, tuple[str, ...]] = {start: ()}
    seen = set[str]()
    queue = deque([start])
    while queue and end not in paths:
        here = queue.popleft()
        for tensor in (*index.nodes[here].output, *index.nodes[here].input):
            if tensor not in seen and any(wanted[index.graph.unit_of[f.ids]].any() for f in index.factors(tensor)):
                for name in (node.name for node in index.touching(tensor)):
                    if name not in paths:
                        paths[name] = (*paths[here], name)
                        queue.append(name)
            seen.add(tensor)
    return paths.get(end, ())


def pinning_node(index: Index, pin: Pin) -> str | None:
    """Return the name of the node that pins, or that makes the graph output or tensor that does."""
    quoted = re.search(r'"(.*)"$', pin.node)
    name = quoted[1] if quoted else pin.node
    maker = index.nodes.get(name) or index.tensors.makers.get(name)
    return None if maker is None else maker.name
