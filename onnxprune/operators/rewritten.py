"""A node as its rewriting rule sees it: its original shapes, what remains, and how to change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import to_array

from onnxprune.channels.values import Mask, Shape
from onnxprune.operators.node import Node
from onnxprune.shapes import Shapes


class Remaining(Protocol):
    """What remains of each tensor after channels are removed."""

    def shape(self, tensor: str) -> Shape:
        """Return a tensor's shape."""

    def mask(self, tensor: str, axis: int) -> Mask | None:
        """Return which positions of an axis remain; None for an axis without channels."""


class RewriteNode(Node):
    """One node of the pruned model, a copy that its rule may change.

    Attributes:
        node: the copy.
        before: nodes to insert before it.
        after: nodes to insert after it.
        constants: new initializers it needs, by name.
    """

    def __init__(
        self,
        node: NodeProto,
        version: int,
        shapes: Shapes,
        remaining: Remaining,
        unique: Callable[[str], str],
        weights: Mapping[str, TensorProto],
    ) -> None:
        """Set up a copied node for its rule; called by `rewrite`."""
        super().__init__(node, version)
        self.before: list[NodeProto] = []
        self.after: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._remaining = remaining
        self._shapes = shapes
        self._inputs = list(node.input)
        self._unique = unique
        self._weights = weights

    def const(self, i: int) -> NDArray[Any] | None:
        """Return the original value of the parameter at input ``i``, or None."""
        name = self._inputs[i] if i < len(self._inputs) else ""
        if name in self._weights and name not in self._shapes.values:  # one of many elements
            return to_array(self._weights[name])
        return self._shapes.values.get(name)

    def shape(self, i: int) -> Shape:
        """Return the original shape of input ``i``."""
        return self._shapes.shapes[self._inputs[i]]

    def new_shape(self, i: int) -> Shape:
        """Return the new shape of input ``i``."""
        return self._remaining.shape(self._inputs[i])

    def new_out_shape(self, i: int) -> Shape:
        """Return the new shape of output ``i``."""
        return self._remaining.shape(self.node.output[i])

    def mask(self, i: int, axis: int) -> Mask | None:
        """Return which positions of an axis of input ``i`` remain; None for an axis without channels."""
        return self._remaining.mask(self._inputs[i], axis)

    def out_mask(self, i: int, axis: int) -> Mask | None:
        """Return which positions of an axis of output ``i`` remain; None for an axis without channels."""
        return self._remaining.mask(self.node.output[i], axis)

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.remove_attr(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def remove_attr(self, name: str) -> None:
        """Remove an attribute, if it is there."""
        for i, attribute in enumerate(self.node.attribute):
            if attribute.name == name:
                del self.node.attribute[i]
                return

    def set_param(self, i: int, name: str, value: NDArray[Any], *, since: int = 1, is_shape: bool = False) -> None:
        """Set a parameter that is an attribute before opset ``since`` and input ``i`` from then on.

        A parameter that the model computes at run time is still computed. Entries that change are overridden; those of
        a shape are scaled instead, which is right even if a factor of the axis is an input's size.
        """
        if self.attr(name) is not None or self.version < since:
            self.set_attr(name, value.tolist())
            return
        old = self.const(i)
        if old is not None and np.array_equal(old, value):
            return
        if old is not None:
            value = value.astype(old.dtype)
        given = self._inputs[i] if i < len(self._inputs) else ""
        self.node.input.extend([""] * (i + 1 - len(self.node.input)))
        if old is None or given in self._shapes.static or given in self._weights:
            new = self._constant(given or f"{self.node.output[0]}_{name}", value)
        elif is_shape:
            new = self._unique(f"{given}_pruned")
            self.before += self._scaled(given, old, value, new)
        else:
            new = self._override(given, np.asarray(old != value), self._constant(given, value))
        self.node.input[i] = new

    def fix_param(self, i: int, value: NDArray[Any]) -> None:
        """Replace a parameter that depends on no input's size by a constant, even if it is computed at run time."""
        if not np.array_equal(np.asarray(self.const(i)), value):
            self.node.input[i] = self._constant(self._inputs[i], value)

    def scale_output(self, now: NDArray[Any], before: NDArray[Any]) -> None:
        """Multiply the sizes that the node computes at run time by their original values over the new ones.

        Args:
            now: the sizes it computes after pruning, at the traced input sizes.
            before: the sizes it computed originally.
        """
        name = self.node.output[0]
        self.node.output[0] = self._unique(f"{name}_computed")
        self.after += self._scaled(self.node.output[0], now, before, name)

    def _override(self, computed: str, changed: NDArray[Any], value: str) -> str:
        """Replace the changed entries of a parameter that is computed at run time."""
        mask, out = self._constant(f"{computed}_changed", changed), self._unique(f"{computed}_pruned")
        self.before.append(helper.make_node("Where", [mask, value, computed], [out], name=self._unique(f"{out}_where")))
        return out

    def _scaled(self, computed: str, old: NDArray[Any], new: NDArray[Any], out: str) -> list[NodeProto]:
        """Multiply sizes that are computed at run time by new over old ones, whatever their other factors are."""
        changed = (old != new) & (old > 0)
        times = self._constant(f"{computed}_times", np.where(changed, new, 1).astype(old.dtype))
        over = self._constant(f"{computed}_over", np.where(changed, old, 1).astype(old.dtype))
        product = self._unique(f"{computed}_multiplied")
        return [
            helper.make_node("Mul", [computed, times], [product], name=self._unique(f"{product}_node")),
            helper.make_node("Div", [product, over], [out], name=self._unique(f"{out}_node")),
        ]

    def _constant(self, base: str, value: NDArray[Any]) -> str:
        name = self._unique(f"{base}_pruned")
        self.constants[name] = value
        return name
