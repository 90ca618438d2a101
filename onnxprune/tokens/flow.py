"""Follow tokens through a graph, operator by operator: which one each position along an axis of a tensor stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxprune.channels.values import Shape
from onnxprune.model.graph import attribute, opset_of
from onnxprune.operators.card import card_of
from onnxprune.operators.elementwise import ELEMENTWISE
from onnxprune.operators.node import Node
from onnxprune.shapes import Shapes

Ids = NDArray[np.int64]

_LINEAR = {"Cast", "Div", "Dropout", "Identity", "Mul"}  # of their first input, or of the one that has the tokens
_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
_RESHAPES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_SAME_SIZE = 13  # opset from which on Softmax has a single axis


class Lost(Exception):
    """An operator behind which tokens can't be followed; its text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What the positions along an axis stand for.

    Attributes:
        ids: the token of each position. Positions with the same one hold the same values.
        shares: whether those of the same token hold shares, which add up to that of the token, as attention's weights.
    """

    ids: Ids
    shares: bool = False

    @property
    def count(self) -> int:
        """The number of tokens, if they are numbered from 0."""
        return int(self.ids.max()) + 1

    @property
    def sizes(self) -> Ids:
        """The number of positions of each token, if they are numbered from 0."""
        return np.bincount(self.ids)

    def same(self, other: Tokens) -> bool:
        """Whether two axes stand for the same."""
        return self.shares == other.shares and np.array_equal(self.ids, other.ids)


Axes = Mapping[int, Tokens]
"""The axes of a tensor that stand for tokens."""

Parts = list[Tokens | None]


class Flow:
    """The rules, at the shapes of the original.

    With groups, tokens are numbered from 0 in the order of their positions once they are merged; an axis that doesn't
    stand for tokens can't meet one that does. Without, ids are those of patches, and other positions have -1.
    """

    def __init__(self, proto: ModelProto, shapes: Shapes, *, groups: bool) -> None:
        """Prepare for a model.

        Args:
            proto: the normalized model.
            shapes: its concretized shapes.
            groups: whether ids are those of groups, so that equal ones hold equal values.
        """
        self._shapes, self._values, self._groups = shapes.shapes, shapes.values, groups
        self._opset = opset_of(proto)

    def outputs(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Return the axes of a node's outputs that stand for tokens.

        Args:
            node: the node; names of its tensors are those of the original.
            along: the axes of its inputs; at least one has some.

        Raises:
            Lost: there is no rule, or something differs from token to token.
        """
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
        if card_of(node.domain, node.op_type).trace in ELEMENTWISE:
            rule = Flow.elementwise
        if rule is None:
            raise Lost("no rule for it")
        if not all(n in self._shapes for n in (*node.input, *node.output) if n):
            raise Lost("a shape isn't known")
        if rule not in _SEVERAL and [*along] != [node.input[0]]:
            raise Lost("tokens are parameters of it")
        try:
            return rule(self, node, along)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # models are untrusted
            raise Lost(f"it isn't understood ({error})") from error

    def picked(self, tokens: Tokens, positions: Ids) -> tuple[Tokens, Ids]:
        """Return what some positions stand for, and with groups the tokens that these are, numbered as before."""
        if tokens.shares:
            raise Lost("it takes some shares of tokens, and leaves others")
        found = tokens.ids[positions]
        if not self._groups:
            return Tokens(found), found
        kept, ids = np.unique(found, return_inverse=True)
        return Tokens(ids.reshape(-1).astype(np.int64)), kept

    # The rules

    def elementwise(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Axes meet under broadcasting."""
        return self._all(node, self._broadcast(node, node.input, along, self._shape(node.output[0])))

    def transpose(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Axes change places."""
        axes = along[node.input[0]]
        order = attribute(node, "perm", range(len(self._shape(node.input[0])))[::-1])
        return self._all(node, {to: axes[of] for to, of in enumerate(order) if of in axes})

    def reshape(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """An axis stays if what is before it does, and the first axis stays the first."""
        before, made = self._shape(node.input[0]), self._shape(node.output[0])
        found, free = {}, node.op_type in ("Squeeze", "Unsqueeze")
        for axis, tokens in along[node.input[0]].items():
            places = (j for j, n in enumerate(made) if n == before[axis] and prod(made[:j]) == prod(before[:axis]))
            place = next(places, None)
            if place is None or not (free or (axis == 0) == (place == 0)):
                raise Lost("it divides the tokens, or joins them with another axis")
            found[place] = tokens
        return self._all(node, found)

    def matmul(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Tokens are summed over only with weights that are shares."""
        a, b = node.input[0], node.input[1]
        ranks = len(self._shape(a)), len(self._shape(b))
        if min(ranks) < 2:
            raise Lost("it multiplies with a vector")
        rank, (left, right) = max(ranks), (along.get(name, {}) for name in (a, b))
        self._contract(left.get(ranks[0] - 1), right.get(ranks[1] - 2))
        found = self._broadcast(node, (a, b), along, self._shape(node.output[0]), skip=(rank - 2, rank - 1))
        for axes, own, place in ((left, ranks[0] - 2, rank - 2), (right, ranks[1] - 1, rank - 1)):
            if own in axes:
                found[place] = axes[own]
        return self._all(node, found)

    def softmax(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """The results along the axis are shares."""
        axes, rank = along[node.input[0]], len(self._shape(node.input[0]))
        axis = attribute(node, "axis", -1 if self._opset >= _SAME_SIZE else 1) % rank
        if self._opset < _SAME_SIZE and axis != rank - 1 and any(a >= axis for a in axes):
            raise Lost("it normalizes over several axes at once")
        if any(tokens.shares for tokens in axes.values()):
            raise Lost("it isn't linear in shares of tokens")
        return self._all(node, {i: replace(t, shares=True) if i == axis else t for i, t in axes.items()})

    def normalize(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """The axes over which statistics are taken aren't those of tokens."""
        axes, rank = along[node.input[0]], len(self._shape(node.input[0]))
        first = attribute(node, "axis", -1) % rank
        if any(axis >= first or tokens.shares for axis, tokens in axes.items()):
            raise Lost("it normalizes over tokens")
        return self._all(node, axes)

    def batch_norm(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Every channel has its own statistics, which are constants."""
        axes = along[node.input[0]]
        if any(axis == 1 or tokens.shares for axis, tokens in axes.items()) or len(node.output) > 1:
            raise Lost("it normalizes over tokens")
        return self._all(node, axes)

    def reduce(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """A mean or a sum over tokens counts each as often as it has positions."""
        axes, rank, gone = along[node.input[0]], len(self._shape(node.input[0])), self.reduced(node)
        if any(t.shares and not (i in gone and node.op_type == "ReduceSum") for i, t in axes.items()):
            raise Lost("it isn't a sum of shares")
        keep = attribute(node, "keepdims", 1)
        places = {i: i if keep else i - sum(a < i for a in gone) for i in range(rank) if i not in gone}
        return self._all(node, {places[i]: t for i, t in axes.items() if i in places})

    def concat(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Tokens stand behind others."""
        shapes = [self._shape(name) for name in node.input]
        axis = attribute(node, "axis", 0) % len(shapes[0])
        found = self._broadcast(node, node.input, along, self._shape(node.output[0]), skip=(axis,))
        ids, start = list[Ids](), 0
        if any(axis in axes for axes in along.values()):
            for name, shape in zip(node.input, shapes, strict=True):
                tokens = along.get(name, {}).get(axis)
                if tokens is not None and tokens.shares:
                    raise Lost("it joins shares of tokens with others")
                own = tokens.ids if tokens is not None else np.arange(shape[axis]) if self._groups else None
                ids.append(np.full(shape[axis], -1) if own is None else own + start)
                start += int(own.max()) + 1 if own is not None and self._groups else 0
            found[axis] = Tokens(np.concatenate(ids).astype(np.int64))
        return self._all(node, found)

    def slices(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Some positions stay."""
        found = dict(along[node.input[0]])
        for axis, positions in self.sliced(node).items():
            if axis in found:
                found[axis], kept = self.picked(found[axis], positions)
                if self._groups and not _is_run(kept):
                    raise Lost("it cuts groups of tokens apart")
        return self._all(node, found)

    def split(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Some positions go into each output."""
        axes, outputs = along[node.input[0]], dict[str, Axes]()
        axis, start, last = attribute(node, "axis", 0) % len(self._shape(node.input[0])), 0, -1
        for name in node.output:
            size = self._shape(name)[axis]
            own = dict(axes)
            if axis in axes:
                own[axis], kept = self.picked(axes[axis], np.arange(start, start + size))
                if self._groups and not (_is_run(kept) and kept[0] == last + 1):
                    raise Lost("it cuts groups of tokens apart")
                start, last = start + size, int(kept[-1])
            outputs[name] = own
        return outputs

    def gather(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Some positions stay: a constant says which."""
        data, shape = along[node.input[0]], self._shape(node.input[0])
        axis, rank = attribute(node, "axis", 0) % len(shape), len(self._shape(node.input[1]))
        found = {i if i < axis else i + rank - 1: t for i, t in data.items() if i != axis}
        if axis in data:
            at = self._values.get(node.input[1])
            if at is None or rank > 1 or not at.size:
                raise Lost("which tokens it takes isn't a constant")
            tokens, _ = self.picked(data[axis], at.reshape(-1).astype(np.int64) % shape[axis])
            if rank:
                found[axis] = tokens
        return self._all(node, found)

    def expand(self, node: NodeProto, along: Mapping[str, Axes]) -> dict[str, Axes]:
        """Axes stay, counted from the last."""
        made = self._shape(node.output[0])
        return self._all(node, self._broadcast(node, node.input[:1], along, made))

    # What rules share

    def reduced(self, node: NodeProto) -> tuple[int, ...]:
        """Return the axes that a reduction sums up."""
        rank = len(self._shape(node.input[0]))
        axes = attribute(node, "axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = self._values.get(node.input[1])
            if axes is None:
                raise Lost("its axes aren't constants")
        if axes is None or not len(axes):
            axes = () if attribute(node, "noop_with_empty_axes", 0) else range(rank)
        return tuple(int(axis) % rank for axis in axes)

    def sliced(self, node: NodeProto) -> dict[int, Ids]:
        """Return the positions that a Slice takes, by axis; those of axes that stay whole are left out."""
        shape = self._shape(node.input[0])
        if len(node.input) < 3:
            given: list[Any] = [*(attribute(node, part) for part in ("starts", "ends", "axes")), None]
        else:
            given = [*map(self._values.get, node.input[1:]), *[None] * (5 - len(node.input))]
        if given[0] is None or given[1] is None:
            raise Lost("what it takes isn't a constant")
        starts, ends, axes, steps = (None if g is None else [int(n) for n in g] for g in given)
        assert starts is not None and ends is not None
        found = {}
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            axis = i if axes is None else axes[i] % len(shape)
            step = 1 if steps is None else steps[i]
            found[axis] = np.arange(shape[axis])[slice(start, None if step < 0 and end < -shape[axis] else end, step)]
        return {axis: at for axis, at in found.items() if not np.array_equal(at, np.arange(shape[axis]))}

    def _shape(self, name: str) -> Shape:
        return self._shapes[name]

    def _all(self, node: NodeProto, axes: Axes) -> dict[str, Axes]:
        return {name: axes for name in node.output if name}

    def _broadcast(
        self,
        node: NodeProto,
        names: Iterable[str],
        along: Mapping[str, Axes],
        made: Shape,
        skip: tuple[int, ...] = (),
    ) -> dict[int, Tokens]:
        """Return the axes of a result whose operands meet under broadcasting, without some."""
        found = {}
        known = [(name, self._shape(name)) for name in names if name]
        for axis in sorted(set(range(len(made))).difference(skip)):
            parts: Parts = []
            for name, shape in known:
                own = axis - len(made) + len(shape)
                if own >= 0 and shape[own] > 1:
                    parts.append(along.get(name, {}).get(own))
            if any(part is not None for part in parts):
                found[axis] = self._met(parts)
        if any(tokens.shares for tokens in found.values()) and not self._is_linear(node, along):
            raise Lost("it isn't linear in shares of tokens")
        return found

    def _met(self, parts: Parts) -> Tokens:
        known = [part for part in parts if part is not None]
        if self._groups and len(known) < len(parts):
            raise Lost("something differs from token to token")
        if not all(part.same(known[0]) for part in known):
            raise Lost("different tokens meet")
        if known[0].shares and len(parts) > 1:
            raise Lost("it isn't linear in shares of tokens")
        return known[0]

    def _is_linear(self, node: NodeProto, along: Mapping[str, Axes]) -> bool:
        sharing = [any(t.shares for t in along.get(name, {}).values()) for name in node.input]
        if node.op_type == "MatMul":
            return sum(sharing) == 1
        return node.op_type in _LINEAR and sum(sharing) == 1 and (sharing[0] or node.op_type == "Mul")

    @staticmethod
    def _contract(left: Tokens | None, right: Tokens | None) -> None:
        if left is None and right is None:
            return
        if left is None or right is None or not np.array_equal(left.ids, right.ids) or left.shares == right.shares:
            raise Lost("it sums up tokens with weights of their own")


def why(node: NodeProto, lost: Lost) -> str:
    """Return why tokens can't be followed behind a node."""
    return f"{Node(node).label}: {lost}"


def _is_run(ids: Ids) -> bool:
    """Whether ascending numbers follow each other."""
    return bool(len(ids)) and int(ids[-1] - ids[0]) == len(ids) - 1


_Rule = Callable[[Flow, NodeProto, Mapping[str, Axes]], dict[str, Axes]]
_RULES: dict[str, _Rule] = {
    "BatchNormalization": Flow.batch_norm,
    "Concat": Flow.concat,
    "Expand": Flow.expand,
    "Gather": Flow.gather,
    "MatMul": Flow.matmul,
    "Slice": Flow.slices,
    "Softmax": Flow.softmax,
    "Split": Flow.split,
    "Transpose": Flow.transpose,
    **dict.fromkeys(_NORMS, Flow.normalize),
    **dict.fromkeys(_REDUCTIONS, Flow.reduce),
    **dict.fromkeys(_RESHAPES, Flow.reshape),
}
_SEVERAL = (Flow.concat, Flow.elementwise, Flow.matmul)  # rules by which tokens of several inputs meet
