"""States: an input and an output of the model that a caller feeds back from one run to the next.

A recurrent layer's hidden state, a cache of keys and values, the last frames that a streaming convolution needs. Where
states may be resized, the channels of the input get ids like those of a weight, and meet those of the output.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.channels.ledger import Channels, Pin
from onnxprune.channels.values import Factor, Value
from onnxprune.errors import PlanError
from onnxprune.model.graph import reads
from onnxprune.operators.card import card_of
from onnxprune.operators.traced import TraceNode, Walk
from onnxprune.settings.planning import Policies
from onnxprune.shapes import Shapes


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MOVES = _set("Cast Concat Expand Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze")
_ROLES = _set("past present in out input output prev previous next new cur current updated init initial final last n t")
_STATES = _set(
    "state states cache caches hidden cell memory mem h c hx cx key value keys values k v kv past present buffer buf "
    "rnn lstm gru conv context ctx"
)
_GATES = _set("HardSigmoid Sigmoid")
_MOST_IDS = 2**20
_CACHE_RANK, _CACHE_TIME = 4, 2  # [batch, heads, time, width]


@dataclass(frozen=True, slots=True)
class State:
    """A state of the model.

    Attributes:
        input: the input that takes it.
        output: the output that returns it.
        open: the axes whose sizes aren't fixed by the model, such as the batch, or the time of a cache that grows.
    """

    input: str
    output: str
    open: tuple[int, ...]


def find_states(proto: ModelProto, shapes: Shapes, policies: Policies) -> tuple[State, ...]:
    """Return the states that may be resized: those that are named, and, if all may, those that are recognized.

    An input and an output are one state if type and shape agree (one axis may grow), and either their names do, by the
    usual conventions (past_key_values.0.key and present.0.key, h0 and hn, state and stateN, cache_in and cache_out),
    or the output is what a recurrent layer or an attention makes of the input, through nothing but data movement.

    Args:
        proto: a normalized model.
        shapes: its concretized shapes.
        policies: which states may be resized.

    Raises:
        PlanError: a named pair can't be a state, there is no state, or there are several ways to pair (OP316).
    """
    search = _Search(proto, shapes)
    found = [search.named(*pair) for pair in policies.state]
    if policies.resize_states:
        found += search.recognized({s.input for s in found} | {s.output for s in found})
        if not found:
            raise _unpaired("no input and output are clearly the same state", search.names())
    return tuple(found)


def _unpaired(cause: str, where: str | None = None) -> PlanError:
    return PlanError("OP316", cause, where=where, hint="name the input and the output of each with `state`: IN=OUT")


class _Search:
    """The inputs and outputs of a model, and which may be the same state."""

    def __init__(self, proto: ModelProto, shapes: Shapes) -> None:
        self._graph, self._shapes = proto.graph, shapes
        weights = {t.name for t in proto.graph.initializer}
        self._inputs = {i.name: i for i in proto.graph.input if i.name not in weights}
        self._outputs = {o.name: o for o in proto.graph.output}

    def names(self) -> str:
        """Return the names of the inputs and outputs as text."""
        return f"inputs {', '.join(self._inputs)}; outputs {', '.join(self._outputs)}"

    def named(self, entry: str, exit_: str) -> State:
        """Return a pair that the user names."""
        for name, known, what in ((entry, self._inputs, "input"), (exit_, self._outputs, "output")):
            if name not in known:
                raise PlanError("OP316", f'the model has no {what} "{name}"', where="state", hint=self.names())
        if not self._fit(entry, exit_):
            sizes = " and ".join(str(list(self._shapes.shapes.get(name, "?"))) for name in (entry, exit_))
            cause = f'"{entry}" and "{exit_}" can\'t be one state: their types or shapes differ ({sizes})'
            raise PlanError("OP316", cause, where="state")
        others = [n for n in self._inputs if n != entry and self._fit(n, exit_) and exit_ in self._computed(n)]
        if others and exit_ not in self._computed(entry):
            cause = f'"{exit_}" isn\'t computed from "{entry}", but from "{others[0]}", which has the same shape'
            raise PlanError("OP316", cause, where="state")
        return self._state(entry, exit_)

    def recognized(self, taken: Collection[str]) -> list[State]:
        """Return the other pairs that are clearly states.

        Raises:
            PlanError: there are several ways to pair (OP316).
        """
        inputs = [n for n in self._inputs if n not in taken]
        found: dict[str, str] = {}
        for alike in (self._names_agree, self._passes_through):
            left = [n for n in self._outputs if n not in taken and n not in found.values()]
            choices = {n: [o for o in left if self._fit(n, o) and alike(n, o)] for n in inputs if n not in found}
            for name, outputs in choices.items():
                if not outputs:
                    continue
                rivals = [n for n, own in choices.items() if not set(own).isdisjoint(outputs)]
                if len(outputs) > 1 or len(rivals) > 1:
                    pairs = ", ".join(f"{n} = {' or '.join(choices[n])}" for n in rivals)
                    raise _unpaired("states can be paired in several ways", pairs)
                found[name] = outputs[0]
        return [self._state(name, found[name]) for name in self._inputs if name in found]

    def _state(self, entry: str, exit_: str) -> State:
        before, after = self._shapes.shapes[entry], self._shapes.shapes[exit_]
        dims = self._inputs[entry].type.tensor_type.shape.dim
        free = [not (d.HasField("dim_value") and d.dim_value > 0) for d in dims] or [True] * len(before)
        return State(entry, exit_, tuple(a for a in range(len(before)) if free[a] or before[a] != after[a]))

    def _fit(self, entry: str, exit_: str) -> bool:
        """Whether types and shapes agree; one axis may grow, as that of time in a cache."""
        kinds = (self._inputs[entry].type.tensor_type, self._outputs[exit_].type.tensor_type)
        before, after = (self._shapes.shapes.get(name, ()) for name in (entry, exit_))
        if kinds[0].elem_type != kinds[1].elem_type or len(before) != len(after) or not before:
            return False
        pairs = list(zip(before, after, strict=True))
        grown = sum(n != m for n, m in pairs)
        return all(n <= m for n, m in pairs) and grown <= (len(pairs) > 2)

    def _names_agree(self, entry: str, exit_: str) -> bool:
        """Whether names agree but for words such as in and out, and are those of states."""
        return bool(_words(entry, start=True) & _words(exit_)) and not _STATES.isdisjoint(
            [*_split(entry), *_split(exit_)]
        )

    def _passes_through(self, entry: str, exit_: str) -> bool:
        """Whether data movement leads from an input to a state of a layer, and from the layer's next state on.

        The layer is one operator, or written out: the next state is then gate * state + other gate * candidate.
        """
        moved, states, gates, gated, products = {entry}, set[str](), set[str](), set[str](), set[str]()
        for node in self._graph.node:
            for i, o in card_of(node.domain, node.op_type).states:
                if i < len(node.input) and o < len(node.output) and node.input[i] in moved | states:
                    states.add(node.output[o])
            if node.op_type in _MOVES:
                for own in (moved, states, gates):
                    own.update(node.output if not own.isdisjoint(node.input) else ())
            elif node.op_type in _GATES or (node.op_type == "Sub" and node.input[1] in gates):  # 1 - gate
                gates.update(node.output)
            elif node.op_type == "Mul":
                products.update(node.output)
                if not moved.isdisjoint(node.input) and not gates.isdisjoint(node.input):
                    gated.update(node.output)
            elif node.op_type == "Add" and products.issuperset(node.input) and not gated.isdisjoint(node.input):
                states.update(node.output)
        return exit_ in states - {""}

    def _computed(self, entry: str) -> set[str]:
        """Return everything that is computed from an input."""
        found = {entry}
        for node in self._graph.node:
            if not found.isdisjoint(reads(node)):
                found.update(node.output)
        return found


def _split(name: str) -> list[str]:
    """Split a name into words and numbers, in lower case: stateN, h_0 and hn into state n, h 0 and h n."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)
    return [w for word in words for w in re.sub(r"^([hc])([nxyt])$", r"\1 \2", word.lower()).split()]


def _words(name: str, *, start: bool = False) -> set[tuple[str, ...]]:
    """Return a name without words that tell an input from an output; the 0 of a start may be such a word, too."""
    words = _split(name)
    for phrase in (["past", "key", "values"], ["present", "key", "values"]):
        if words[:3] == phrase and len(words) > 3:
            words = words[3:]
    core = tuple(word for word in words if word not in _ROLES)
    found = {core, core[:-1]} if start and core[-1:] == ("0",) else {core}
    return found - {()}


def open_states(
    walk: Walk, states: Iterable[State], values: dict[str, Value], graph: GraphProto, *, uniform: bool
) -> None:
    """Give the inputs of states ids on the axes that the model fixes.

    Args:
        walk: the walk, before its first node.
        states: the states.
        values: the values of the inputs, which are replaced.
        graph: the graph.
        uniform: whether caches of keys and values lose the same heads in all layers.
    """
    first = {name: i for i, node in reversed(list(enumerate(graph.node))) for name in reads(node)}
    alike: dict[tuple[tuple[int, ...], ...], Factor] = {}
    for state in states:
        value = values[state.input]
        axes = tuple(a for a, n in enumerate(value.shape) if 1 < n <= _MOST_IDS and a not in state.open)
        factors = list(_fresh(axes, value, walk.channels, first.get(state.input, 0)))
        values[state.input] = value.moved(value.shape, factors)
        if uniform and len(value.shape) == _CACHE_RANK and _CACHE_TIME in state.open:
            for factor in factors:
                same = alike.setdefault((factor.axes, factor.ids.shape), factor)
                walk.channels.tie(same.ids, factor.ids, first.get(state.input, 0))


def _fresh(axes: tuple[int, ...], value: Value, channels: Channels, node: int) -> Iterable[Factor]:
    """Yield new ids on axes: one for each element, so that parts of a stacked state are told apart."""
    sizes = [value.shape[a] for a in axes]
    joint = [axes] if axes and prod(sizes) <= _MOST_IDS else [(a,) for a in axes]
    for own in joint:
        shape = [value.shape[a] for a in own]
        factor = Factor(own, channels.fresh(prod(shape)).reshape(shape))
        channels.pieces.append(factor.ids)
        if len(own) > 1:
            channels.rectangle(factor.ids, node)
        yield factor


def close_states(walk: Walk, states: Iterable[State], values: Mapping[str, Value]) -> None:
    """Tie the outputs of states to their inputs, position by position; pin what has no counterpart."""
    for state in states:
        before, after = values[state.input], values.get(state.output)
        if after is None:
            for factor in before.factors:
                walk.channels.pin(factor.ids, Pin("OP213", f'graph output "{state.output}"', "its shape isn't known"))
            continue
        node = NodeProto(op_type="state", name=f"{state.input} → {state.output}", input=[state.input, state.output])
        node.output.append(state.output)
        op = TraceNode(walk, 0, node)
        after = op.pin_axes(after, state.open, "OP202", "the size of this axis is the caller's")
        names = [f"a{i}" for i in range(len(before.shape))]
        ends = [f"b{i}" if i in state.open else name for i, name in enumerate(names)]
        op.align(f"{' '.join(names)}, {' '.join(ends)} -> {' '.join(ends)}", [before, after])
