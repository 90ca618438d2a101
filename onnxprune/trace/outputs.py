"""The tensors to follow in place of a model's outputs: those that vary smoothly with the weights.

Detectors end in a selection: NonMaxSuppression, NonZero or TopK decide which boxes are output, and so how many. A tiny
change of a score changes which ones, and elements of two such outputs don't belong together. What tells how far two
models are apart are the tensors in front of the selection: boxes and scores. The same holds for labels, for text, and
for maps and sequences that are made from a tensor of scores.

Where a selection starts follows from facts on the operators' cards: which inputs' values set the output's size
(`Card.sizing`) or say what is picked (`Card.picking`). Sizes and indices that don't depend on weights are no selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto
from onnx.shape_inference import infer_shapes

from onnxprune.model.bodies import close_bodies
from onnxprune.model.checks import subgraphs
from onnxprune.model.file import skeleton
from onnxprune.model.graph import OF_SHAPE, GraphIndex, reads
from onnxprune.operators.card import card_of

_REAL = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
# Operators that add no information to their input, and lose some where they saturate.
_SQUASHING = frozenset({"ArgMax", "Clip", "HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh", "TopK"})
_MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Followed:
    """What to compare of two versions of a model.

    Attributes:
        tensors: floating-point tensors that stand for all outputs. Those of `sized` can be compared only where two
            models have the same number of elements.
        replaced: the outputs behind a selection, where elements of two models needn't belong together, with the tensors
            of `tensors` in front of it.
        sized: the tensors among outputs and `tensors` whose number of elements depends on what is selected.
        choices: the tensors that hold what was selected: indices, flags and sizes.
    """

    tensors: tuple[str, ...]
    replaced: Mapping[str, tuple[str, ...]]
    sized: frozenset[str]
    choices: tuple[str, ...]

    @property
    def fronts(self) -> tuple[str, ...]:
        """The tensors in front of a selection that two models have in the same size."""
        names = dict.fromkeys(name for names in self.replaced.values() for name in names)
        return tuple(name for name in names if name not in self.sized)

    @property
    def ragged(self) -> tuple[str, ...]:
        """The outputs whose number of elements depends on what is selected."""
        return tuple(name for name in self.replaced if name in self.sized)

    def note(self) -> str | None:
        """Return a sentence on what is compared instead of outputs, if anything is."""
        if not self.replaced:
            return None
        stand_ins = dict.fromkeys(name for names in self.replaced.values() for name in names)
        return (
            f"What {_listed(self.replaced)} holds depends on what the model selects: compared in front of the"
            f" selection, at {_listed(stand_ins)}."
        )


def followed(model: ModelProto) -> Followed:
    """Return the tensors that stand for a model's outputs.

    Args:
        model: a model in topological order.

    Examples:
        >>> import onnxprune as op
        >>> followed(op.load("models/digits_resnet.onnx").proto).tensors
        ('logits',)
    """
    model = close_bodies(model)
    walk = _Walk(model.graph)
    walk.kinds = _kinds(model)
    found: dict[str, None] = {}
    replaced = {}
    for output in walk.index.outputs:
        standing = dict.fromkeys(walk.standing(output))
        found.update(standing)
        if output in walk.picked or output in walk.sized:
            replaced[output] = tuple(name for name in standing if name != output)
    sized = walk.sized.intersection(found.keys() | set(walk.index.outputs))
    return Followed(tuple(found), replaced, frozenset(sized), tuple(walk.choices()))


def unsquashed(model: ModelProto, tensors: Iterable[str]) -> list[str]:
    """Return tensors, and for those that a final Softmax or a similar operator makes, its input instead."""
    index = GraphIndex(model.graph)
    found = []
    for tensor in tensors:
        while (node := index.makers.get(index.source(tensor, _MOVING))) is not None and node.op_type in _SQUASHING:
            tensor = node.input[0]
        found.append(tensor)
    return list(dict.fromkeys(found))


class _Walk:
    """A pass over a graph, which marks tensors.

    Attributes:
        index: the graph.
        kinds: types of tensors, as far as they are known.
        moved: tensors whose values depend on weights and on the model's inputs.
        sized: tensors whose number of elements depends on weights.
        picked: tensors whose elements were selected by such values, by no layer with weights since.
        selecting: the nodes that select, with the inputs that decide.
    """

    def __init__(self, graph: GraphProto, outside: _Walk | None = None, moved: Iterable[str] = ()) -> None:
        """Mark the tensors of a graph.

        Args:
            graph: the graph.
            outside: the pass over the graph around it.
            moved: its inputs that depend on weights.
        """
        self.index = GraphIndex(graph)
        self.kinds: Mapping[str, TypeProto] = {}
        self.moved, self.sized, self.picked = set(moved), set[str](), set[str]()
        self._constant = {tensor.name for tensor in graph.initializer}
        if outside is not None:
            self.moved |= outside.moved
            self.sized |= outside.sized
            self._constant |= outside._constant
        self.selecting: list[tuple[NodeProto, list[str]]] = []
        for node in self.index.nodes:
            self._visit(node)

    def real(self, tensor: str) -> bool:
        """Whether a tensor is of floating-point numbers, as far as is known."""
        kind = self.kinds.get(tensor, TypeProto())
        if kind.WhichOneof("value") in (None, "tensor_type") and not kind.tensor_type.elem_type:
            node = self.index.makers.get(tensor)
            return node is None or not card_of(node.domain, node.op_type).flat
        return kind.tensor_type.elem_type in _REAL

    def standing(self, tensor: str, seen: set[str] | None = None) -> Iterator[str]:
        """Yield the tensors that stand for one: itself, or those in front of what selects or rounds."""
        seen = set() if seen is None else seen
        node = self.index.makers.get(tensor)
        if tensor in seen:
            return
        seen.add(tensor)
        final = len(seen) == 1
        stops = node is not None and card_of(node.domain, node.op_type).flat
        if self.real(tensor) and tensor not in self.picked and (final or not stops):
            yield tensor
            yield from self._origins(tensor, seen)
        elif node is not None:
            for name in reads(node):
                if name in self.moved or (final and name not in self._constant and name in self.index.makers):
                    yield from self.standing(name, seen)

    def choices(self) -> Iterator[str]:
        """Yield the tensors that hold what was selected, as close to the numbers that decided as possible."""
        seen: set[str] = set()
        for node, deciding in self.selecting:
            made = [name for name in node.output if name and not self.real(name)]
            stack = made or [name for name in deciding if not self.real(name)]
            while stack:
                name = stack.pop()
                if name in seen:
                    continue
                seen.add(name)
                maker = self.index.makers.get(name)
                read = [n for n in reads(maker) if n in self.moved] if maker is not None else []
                if any(map(self.real, read)):
                    yield name
                else:
                    stack += read

    def _origins(self, tensor: str, seen: set[str]) -> Iterator[str]:
        """Yield what stands in front of the selections that set a tensor's size."""
        deciding = {name: names for node, names in self.selecting for name in node.output}
        stack, visited = [tensor] if tensor in self.sized else [], set[str]()
        while stack:
            name = stack.pop()
            visited.add(name)
            for choice in deciding.get(name, ()):
                yield from self.standing(choice, seen)
            node = self.index.makers.get(name)
            stack += [n for n in reads(node) if n in self.sized and n not in visited] if node is not None else []

    def _visit(self, node: NodeProto) -> None:
        card = card_of(node.domain, node.op_type)
        names, made = list(reads(node)), [name for name in node.output if name]
        if node.op_type in OF_SHAPE:
            if not self.sized.isdisjoint(names):
                self.moved.update(made)
            return
        if self._constant.issuperset(names):
            self._constant.update(made)
            return
        bodies = [self._inner(node, body) for body in subgraphs(node)]
        layer = any(n in self._constant for n in _at(node, (*card.weights, *card.factors)))
        moved = not self.moved.isdisjoint(names) or any(not b.moved.isdisjoint(b.index.outputs) for b in bodies)
        sizing = [name for name in _at(node, card.sizing) if name in self.moved]
        picking = [name for name in _at(node, card.picking) if name in self.moved]
        ends = node.op_type == "Loop" and any(b.index.outputs[0] in b.moved for b in bodies)
        sizes = bool(sizing) or ends or any(not b.sized.isdisjoint(b.index.outputs) for b in bodies)
        selects = sizes or bool(picking) or any(not b.picked.isdisjoint(b.index.outputs) for b in bodies)
        if layer or moved or not card.name:  # of an unknown operator anything can be a weight
            self.moved.update(made)
        if sizes or not self.sized.isdisjoint(names):
            self.sized.update(made)
        if selects:
            self.selecting.append((node, sizing + picking or [n for n in names if n in self.moved]))
        if selects or (not self.picked.isdisjoint(names) and not layer):
            self.picked.update(made)

    def _inner(self, node: NodeProto, body: GraphProto) -> _Walk:
        """Mark the tensors of a body. What a state is after a step, it is before the next one."""
        first = 1 if node.op_type == "Loop" else 0  # the number of the step depends on nothing
        given = list(zip(body.input, node.input, strict=False))[first:]
        moved = {inner.name for inner, outer in given if outer in self.moved}
        while True:
            walk = _Walk(body, self, moved)
            after = zip(body.input[first:], walk.index.outputs, strict=False)
            more = {inner.name for inner, result in after if result in walk.moved} - moved
            if not more:
                return walk
            moved |= more


def _at(node: NodeProto, places: Iterable[int]) -> list[str]:
    """Return the inputs at some places."""
    return [node.input[i] for i in dict.fromkeys(places) if i < len(node.input) and node.input[i]]


def _kinds(model: ModelProto) -> dict[str, TypeProto]:
    light = skeleton(model)
    with suppress(Exception):  # of many kinds; what is declared is left
        light = infer_shapes(light)
    graph = light.graph
    return {value.name: value.type for value in (*graph.value_info, *graph.input, *graph.output)}


def _listed(names: Iterable[str]) -> str:
    first, *others = [f'"{name}"' for name in names] or ["nothing"]
    shown = [first, *others[:_SHOWN]]
    more = len(others) + 1 - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


_SHOWN = 5
