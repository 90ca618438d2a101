"""The way that channels take through a graph, from node to node over the tensors on which they stand."""

from __future__ import annotations

import re
from collections import deque

import numpy as np

from onnxprune.trace.channels import Pin
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.values import Ids


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
