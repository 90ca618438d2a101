"""A node as its tracing rule sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels.align import align
from onnxprune.channels.ledger import Approximation, Channels, Pin, fresh_value
from onnxprune.channels.values import Factor, Ids, Shape, Value, reshape
from onnxprune.operators.node import Node
from onnxprune.settings.planning import Attention, Grouped


class ShapeUnknown(Exception):
    """A rule asked for the shape of a tensor whose shape isn't known. Caught by the tracer, which pins."""


class Walk:
    """What the nodes of a walk share. This base class knows shapes only; the tracer's knows ids and values.

    Attributes:
        known: the shapes of tensors.
        channels: the ledger.
        grouped: what leaves a grouped convolution.
        policy: what leaves an attention.
        owned: tensors that hold an initializer's elements and have one reader, with the initializer.
    """

    def __init__(self, known: Mapping[str, Shape], grouped: Grouped = "channels", policy: Attention = "heads") -> None:
        """Start with an empty ledger."""
        self.known = known
        self.grouped = grouped
        self.policy = policy
        self.channels = Channels()
        self.owned: Mapping[str, str] = {}

    def look(self, name: str) -> Value:
        """Return what is known about a tensor.

        Raises:
            ShapeUnknown: nothing is.
        """
        if name not in self.known:
            raise ShapeUnknown(name)
        return Value(self.known[name])

    def read(self, name: str) -> NDArray[Any] | None:
        """Return the value of a parameter; None if it is only known at run time."""
        return None

    def varies(self, name: str) -> NDArray[np.bool_]:
        """Return which entries of a parameter depend on the sizes of the model's inputs."""
        return np.zeros((), dtype=bool)

    def never(self, node: str) -> Collection[str]:
        """Return the bodies of an opened If that no input can lead to."""
        return ()


class TraceNode(Node):
    """One node during the walk: the values, attributes and parameters of its inputs, and its outputs' values.

    Attributes:
        index: the node's index.
        channels: the ledger.
        attention: what leaves an attention, if the node is part of one.
        policy: what leaves an attention, wherever the node is.
        grouped: what leaves a grouped convolution.
        outputs: the outputs' values, by number.
        looked_at: the inputs whose channels the rule has looked at.
    """

    def __init__(
        self,
        walk: Walk,
        index: int,
        node: NodeProto,
        version: int = 1,
        *,
        attention: Attention | None = None,
        records: bool = False,
    ) -> None:
        """Set up a node for its rule; made by the tracer.

        Args:
            walk: what it shares with other nodes.
            index: the node's index.
            node: the node.
            version: the version of its operator's domain.
            attention: what leaves an attention, if the node is part of one.
            records: whether to record which axes a spec sums products over.
        """
        super().__init__(node, version)
        self.index = index
        self.attention = attention
        self.outputs: dict[int, Value] = {}
        self.looked_at: set[str] = set()
        self.channels, self.grouped, self.policy = walk.channels, walk.grouped, walk.policy
        self._walk = walk
        self._records = records

    def x(self, i: int) -> Value:
        """Return what is known about input ``i``."""
        self.looked_at.add(self.node.input[i])
        return self._walk.look(self.node.input[i])

    @property
    def inputs(self) -> list[Value]:
        """All inputs that are given."""
        return [self.x(i) for i in range(len(self.node.input)) if self.has(i)]

    def names(self, rank: int | None = None) -> list[str]:
        """Return a name for each axis of the first input, or for another number of axes, to make specs of."""
        return [f"a{chr(97 + i)}" for i in range(len(self.shape(0)) if rank is None else rank)]

    def shape(self, i: int) -> Shape:
        """Return the shape of input ``i``, without touching its ids."""
        return self._shape(self.node.input[i])

    def out_shape(self, i: int = 0) -> Shape:
        """Return the shape of output ``i``."""
        return self._shape(self.node.output[i])

    def const(self, i: int) -> NDArray[Any] | None:
        """Return the value of a parameter (a shape, an index), None if it is only known at run time; this pins it."""
        return self._walk.read(self.node.input[i]) if self.has(i) else None

    def varies(self, i: int) -> NDArray[np.bool_]:
        """Return which entries of the parameter at input ``i`` depend on the sizes of the model's inputs."""
        return self._walk.varies(self.node.input[i])

    def never(self) -> Collection[str]:
        """Return the bodies of an opened If that no input can lead to."""
        return self._walk.never(self.node.name)

    def give(self, value: Value, i: int = 0) -> None:
        """Set output ``i``."""
        self.outputs[i] = value

    def align(
        self,
        spec: str,
        operands: Sequence[Value | None] | None = None,
        *,
        inputs: Sequence[int] | None = None,
        approximate: Mapping[str, str] = {},
        structure: Collection[str] | None = None,
        balanced: Collection[str] = (),
        **given: int,
    ) -> None:
        """Apply a spec (see `notation`) to operands, and set its outputs.

        Args:
            spec: the spec.
            operands: the operands, by default the inputs; None for an optional one that isn't given.
            inputs: which inputs the operands are, by default all in order.
            approximate: names over which statistics are taken, with the reason.
            structure: names that stay; see `onnxprune.channels.align`.
            balanced: names along which each position loses the same number of channels.
            given: sizes of names inside parentheses.

        Optional outputs of unknown shape are left out: usually nothing reads them.
        """
        inputs = range(len(self.node.input)) if inputs is None else inputs
        if operands is None:
            operands = [self.x(i) if self.has(i) else None for i in inputs]
        listed = spec.partition("->")[2].count(",") + 1
        wanted = [i for i, name in enumerate(self.node.output[:listed]) if name and (i == 0 or self.is_known(name))]
        self.outputs |= align(
            self,
            spec,
            operands,
            {i: self.out_shape(i) for i in wanted},
            given=given,
            structure=structure,
            approximate=approximate,
            balanced=balanced,
            inputs=[(i, len(self.shape(i)) if self.has(i) else 0) for i in inputs] if self._records else None,
        )

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshape a value; pin ids that are lost, and require a rectangle where an axis is split."""
        result = reshape(value, shape, self.attention)
        for ids, reason in result.lost:
            self.pin(ids, "OP208", reason)
        for ids in result.single:
            self.pin(ids, "OP214", "a single channel loses its axis")
        for factor in result.joint:
            self.channels.rectangle(factor.ids, self.index)
        return result.value

    def pin(self, ids: Ids, code: str, reason: str, hint: str | None = None) -> None:
        """Pin ids in the name of this node."""
        self.channels.pin(ids, Pin(code, self.label, reason, hint))

    def note(self, ids: Ids, reason: str) -> None:
        """Record that removing ids isn't the same as zeroing them, because of this node."""
        self.channels.approximate(ids, Approximation(self.node.name, reason))

    def pin_axes(self, value: Value, axes: Sequence[int], code: str, reason: str, hint: str | None = None) -> Value:
        """Pin all ids on some axes of a value; return it without them.

        Ids that are on other axes as well are tied along the axes instead, so that nothing leaves along these.
        """
        factors = []
        for factor in value.factors:
            inside = tuple(d for d, a in enumerate(factor.axes) if a in axes)
            if len(inside) == len(factor.axes):
                self.pin(factor.ids, code, reason, hint)
            elif inside:
                first = factor.ids[tuple(slice(0, 1) if d in inside else slice(None) for d in range(factor.ids.ndim))]
                self.channels.tie(factor.ids, first, self.index)
                rest = tuple(a for d, a in enumerate(factor.axes) if d not in inside)
                factors.append(Factor(rest, first.squeeze(inside)))
            else:
                factors.append(factor)
        return value.moved(value.shape, factors)

    def in_groups(self, i: int, groups: int, *, whole: bool) -> Value:
        """Return the weight at input ``i`` with its first axis split into groups: one more axis in front.

        Along the former second axis each group has its own channels if nothing else reads the weight; if groups leave
        as a whole, these channels are pinned.
        """
        value, owner = self.x(i), self._walk.owned.get(self.node.input[i])
        if whole:
            reason, hint = "a group's channels stay where whole groups leave", "set `grouped` to channels"
            value = self.pin_axes(value, [1], "OP211", reason, hint if self.grouped == "groups" else None)
        factors = []
        for factor in value.factors:
            axes: tuple[int, ...] = ()
            shape: Shape = ()
            for axis, n in zip(factor.axes, factor.ids.shape, strict=True):
                axes += (0, 1) if axis == 0 else (axis + 1,)
                shape += (groups, n // groups) if axis == 0 else (n,)
            ids = factor.ids.reshape(shape)
            if axes == (2,) and groups > 1 and owner is not None:
                axes, ids = (0, 2), self.channels.split_by_group(owner, ids, groups)
            factors.append(Factor(axes, ids))
        return value.moved((groups, value.shape[0] // groups, *value.shape[1:]), factors)

    def approximate(self, value: Value, axes: Sequence[int], reason: str) -> None:
        """Record that the operator takes statistics over some axes of a value."""
        for factor in value.factors:
            if any(a in axes for a in factor.axes):
                self.note(factor.ids, reason)

    def positions(self) -> Value:
        """Return a value for the first output whose axes hold no channels."""
        return Value(self.out_shape())

    def constant(self) -> Value:
        """Return a value for the first output with new channels on every axis, as weights have."""
        return fresh_value(self.out_shape(), self.channels)

    def piece(self, value: Value, axis: int) -> Value:
        """Return the value, and record that its axis is a piece of another one and must not become empty."""
        factor = value.on(axis)
        if factor is not None:
            self.channels.pieces.append(factor.ids)
        return value

    def give_up(self, code: str, reason: str, hint: str | None = None) -> None:
        """Pin all inputs, and give the outputs no channels."""
        for i, name in enumerate(self.node.input):
            if name and self.is_known(name):
                value = self.x(i)
                self.pin_axes(value, range(len(value.shape)), code, reason, hint)
        for i, name in enumerate(self.node.output):
            if name in self._walk.known:
                self.give(Value(self._walk.known[name]), i)

    def is_known(self, name: str) -> bool:
        """Whether a tensor's shape is known."""
        return name in self._walk.known

    def _shape(self, name: str) -> Shape:
        if name not in self._walk.known:
            raise ShapeUnknown(name)
        return self._walk.known[name]
