"""A node as its tracing rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
    """A rule asked for the shape of a tensor that nobody could tell. Caught by the tracer, which pins."""


class TraceNode(Node):
    """One node during the walk: its inputs' values, attributes and parameters, and a place for its outputs' values."""

    def __init__(
        self,
        index: int,
        node: NodeProto,
        version: int,
        records: bool,
        look: Callable[[str], Value],
        read: Callable[[str], NDArray[Any] | None],
        shapes: Mapping[str, Shape],
        channels: Channels,
        attention: Attention | None,
        grouped: Grouped,
        varies: Callable[[str], NDArray[np.bool_]],
        owned: Mapping[str, str],
    ) -> None:
        """Set up a node for its rule; made by the tracer."""
        super().__init__(node, version)
        self.index = index
        self._records = records
        self.outputs: dict[int, Value] = {}
        self.channels = channels
        self.attention = attention
        self.grouped = grouped
        self._look = look
        self._read = read
        self._varies = varies
        self._owned = owned
        self._shapes = shapes

    def x(self, i: int) -> Value:
        """Return what is known of input ``i``."""
        return self._look(self.node.input[i])

    @property
    def inputs(self) -> list[Value]:
        """All inputs that are given."""
        return [self.x(i) for i in range(len(self.node.input)) if self.has(i)]

    def shape(self, i: int) -> Shape:
        """Return the shape of input ``i``, without touching its ids."""
        return self._shape(self.node.input[i])

    def out_shape(self, i: int = 0) -> Shape:
        """Return the shape of output ``i``."""
        return self._shape(self.node.output[i])

    def const(self, i: int) -> NDArray[Any] | None:
        """Read input ``i`` as a parameter (a shape, an index): its value, or None if that is only known at run time."""
        return self._read(self.node.input[i]) if self.has(i) else None

    def varies(self, i: int) -> NDArray[np.bool_]:
        """Tell which entries of the parameter at input ``i`` change with the size of a model's input."""
        return self._varies(self.node.input[i])

    def give(self, value: Value, i: int = 0) -> None:
        """Set output ``i``."""
        self.outputs[i] = value

    def align(
        self,
        spec: str,
        operands: Sequence[Value | None] | None = None,
        *,
        inputs: Sequence[int] | None = None,
        approximate: Mapping[str, str] | None = None,
        structure: Collection[str] | None = None,
        balanced: Collection[str] = (),
        **given: int,
    ) -> None:
        """Apply a spec (see `notation`) to operands, and set the outputs it lists.

        Args:
            spec: the spec.
            operands: the operands, by default the inputs; None for an optional one that isn't given.
            inputs: which inputs the operands are, by default all in order.
            approximate: names over which statistics are taken, and which.
            structure: names that stay; see `onnxprune.channels.align`.
            balanced: names along which as many places leave everywhere.
            given: sizes of names inside parentheses.

        Optional outputs of unknown shape are left out: usually nothing reads them.
        """
        inputs = range(len(self.node.input)) if inputs is None else inputs
        if operands is None:
            operands = [self.x(i) if self.has(i) else None for i in inputs]
        listed = spec.partition("->")[2].count(",") + 1
        wanted = [i for i, name in enumerate(self.node.output[:listed]) if name and (i == 0 or self.is_known(name))]
        outputs = {i: self.out_shape(i) for i in wanted}
        results = align(
            spec,
            operands,
            outputs,
            given=given,
            structure=structure,
            balanced=balanced,
            attention=self.attention,
            approximate=approximate or {},
            channels=self.channels,
            node=self.index,
            name=self.node.name,
            label=self.label,
            inputs=[(i, len(self.shape(i)) if self.has(i) else 0) for i in inputs] if self._records else None,
        )
        self.outputs.update(results)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshape a value, pinning what is lost and asking for rectangles where an axis is split."""
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

    def pin_axes(self, value: Value, axes: Sequence[int], code: str, reason: str, hint: str | None = None) -> Value:
        """Pin all ids on some axes of a value; return it without them.

        Ids that stand on other axes as well are tied along the axes instead, so that nothing leaves along these.
        """
        factors = []
        for factor in value.factors:
            held = tuple(d for d, a in enumerate(factor.axes) if a in axes)
            if len(held) == len(factor.axes):
                self.pin(factor.ids, code, reason, hint)
            elif held:
                first = factor.ids[tuple(slice(0, 1) if d in held else slice(None) for d in range(factor.ids.ndim))]
                self.channels.tie(factor.ids, first, self.index)
                rest = tuple(a for d, a in enumerate(factor.axes) if d not in held)
                factors.append(Factor(rest, first.squeeze(held)))
            else:
                factors.append(factor)
        return value.moved(value.shape, factors)

    def in_groups(self, i: int, groups: int, *, whole: bool) -> Value:
        """Return the weight at input ``i`` with its first axis split into groups: one more axis in front.

        Along what was its second axis each group has channels of its own, if nothing else reads the weight; or, where
        groups leave as a whole, none.
        """
        value, owner = self.x(i), self._owned.get(self.node.input[i])
        if whole:
            reason, hint = "a group's channels stay where whole groups leave", "prune them with --grouped channels"
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
                axes, ids = (0, 2), self.channels.in_blocks(owner, ids, groups)
            factors.append(Factor(axes, ids))
        return value.moved((groups, value.shape[0] // groups, *value.shape[1:]), factors)

    def approximate(self, value: Value, axes: Sequence[int], reason: str) -> None:
        """Note that the operator takes statistics over some axes of a value."""
        for factor in value.factors:
            if any(a in axes for a in factor.axes):
                self.channels.approximate(factor.ids, Approximation(self.node.name, reason))

    def positions(self) -> Value:
        """Return a value for the first output whose axes hold no channels."""
        return Value(self.out_shape())

    def constant(self) -> Value:
        """Return a value for the first output with new channels on every axis, as weights have."""
        return fresh_value(self.out_shape(), self.channels)

    def piece(self, value: Value, axis: int) -> Value:
        """Return the value, noting that its axis is a piece of another one and must not become empty."""
        factor = value.on(axis)
        if factor is not None:
            self.channels.pieces.append(factor.ids)
        return value

    def give_up(self, code: str, reason: str, hint: str | None = None) -> None:
        """Pin whatever the node touches; nothing can be removed through its outputs."""
        for i, name in enumerate(self.node.input):
            if name and self.is_known(name):
                value = self.x(i)
                self.pin_axes(value, range(len(value.shape)), code, reason, hint)
        for i, name in enumerate(self.node.output):
            if name in self._shapes:
                self.give(Value(self._shapes[name]), i)

    def is_known(self, name: str) -> bool:
        """Whether a tensor's shape is known."""
        return name in self._shapes

    def _shape(self, name: str) -> Shape:
        if name not in self._shapes:
            raise ShapeUnknown(name)
        return self._shapes[name]
