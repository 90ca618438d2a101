"""Bodies of If that no input can lead to.

Exporters write an If where the network's code asks for a rank or a size: squeeze if the last axis has one position, add
an axis if there is no batch. Often one of its bodies can't be meant: what it gives has a rank that the nodes behind it
refuse, whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto

from onnxprune.model.bodies import is_open, mark_of, results
from onnxprune.shapes.fallback import is_refused
from onnxprune.shapes.walk import Conflict, ShapeWalk


class Branches:
    """What is certain about the Ifs of a model, for inputs of all sizes that it declares.

    Onnx infers the graph with symbolic sizes, once with each body in question as the one that runs.
    """

    def __init__(self, proto: ModelProto) -> None:
        """Prepare for a normalized model."""
        self._walk = ShapeWalk(proto)
        self._walk.run()
        self._ifs = {n.name: n for n in proto.graph.node if is_open(n) and n.op_type == "If"}
        self._never: dict[str, frozenset[str]] = {}

    def never(self, name: str) -> frozenset[str]:
        """Return the bodies of an opened If, by name, that can't run, or not to the end of what follows them.

        Ask for Ifs in the order of the graph: what is found of one helps with those behind it.
        """
        if name not in self._never:
            node = self._ifs[name]
            bodies = list(results(node))
            around = next((n for n in self._ifs if mark_of(node) in self._marks(n, results(self._ifs[n]))), None)
            condition = self._walk.known.values.get(node.input[0])
            if around is not None and mark_of(node) in self._marks(around, self.never(around)):
                gone = set(bodies)
            elif condition is not None:
                gone = {b for b in bodies if (b == "then_branch") != bool(condition.all())}
            else:
                gone = {b for b in bodies if self._fails(name, b)}
            self._never[name] = frozenset(gone)
            if len(gone) == 1:
                self._walk = self._walk.choosing(name, next(b for b in bodies if b not in gone))
        return self._never[name]

    def _marks(self, name: str, bodies: Iterable[str]) -> set[str]:
        return {mark_of(self._ifs[name], body) for body in bodies}

    def _fails(self, name: str, body: str) -> bool:
        """Whether a node that runs whenever the body does contradicts it."""
        walk = self._walk.choosing(name, body)
        places = {"", mark_of(self._ifs[name])}
        found = (Conflict(*c) for c in walk.contradictions.items() if c[0] not in self._walk.contradictions)
        return not places.isdisjoint(walk.failing - self._walk.failing) and all(is_refused(walk, c) for c in found)
