"""A node as its gradient rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.model.tape import Shape, Tape, Tensor
from onnxprune.operators.node import Node


def _none(output: str) -> None:
    """Return no gradient."""


class GradientNode(Node):
    """One node of the forward pass, and the input that the gradient is wanted for.

    Attributes:
        node: the node.
        tape: the graph it is in, to which the rule appends.
        index: the input.
    """

    def __init__(
        self, node: NodeProto, tape: Tape, index: int = 0, gradients: Callable[[str], Tensor | None] = _none
    ) -> None:
        """Set up a node for its rule.

        Args:
            node: the node.
            tape: the graph it is in.
            index: the input that the gradient is wanted for.
            gradients: returns the gradient of an output by its name, None if nothing depends on it.
        """
        super().__init__(node)
        self.tape = tape
        self.index = index
        self._gradients = gradients

    def x(self, i: int = 0) -> Tensor:
        """Return input ``i``."""
        return self.tape[self.node.input[i]]

    @property
    def inputs(self) -> list[Tensor]:
        """All inputs that are given."""
        return [self.tape[name] for name in self.node.input if name]

    def y(self, i: int = 0) -> Tensor:
        """Return output ``i``, which the node must give."""
        return self.tape[self.node.output[i]]

    def added_output(self, i: int, shape: Shape, dtype: int) -> Tensor:
        """Return an optional output of known shape and type, adding it if the node leaves it out."""
        while len(self.node.output) <= i:
            self.node.output.append("")
        if not self.node.output[i]:
            self.node.output[i] = self.tape.unique(f"{self.node.output[0]}.{i}")
            self.tape.know(self.node.output[i], shape, dtype)
        return self.tape[self.node.output[i]]

    def dy(self, i: int) -> Tensor:
        """Return the gradient of output ``i``, zeros if nothing depends on it."""
        found = self._gradients(self.node.output[i])
        return self.tape[self.node.output[i]].zeros() if found is None else found

    def const(self, i: int) -> NDArray[Any] | None:
        """Return the value of a parameter; None if it isn't given.

        Raises:
            LookupError: it is computed from data.
        """
        if not self.has(i):
            return None
        name = self.node.input[i]
        if name not in self.tape.constants:
            raise LookupError(f"its input {i} is computed from data")
        return self.tape.constants[name]

    def scalar(self, i: int, default: float) -> float:
        """Return the value of a parameter that is a single number."""
        value = self.const(i)
        return default if value is None else float(np.asarray(value).reshape(()))

    def shape(self, i: int) -> Shape:
        """Return the shape of input ``i``."""
        return self.x(i).shape

    def axes(self, i: int) -> list[int]:
        """Return the axes given as input ``i`` or as an attribute, counted from the left; all if there are none."""
        given, rank = self.param(i, "axes"), self.x().rank
        if given is None or not given.size:
            return [] if self.attr("noop_with_empty_axes", 0) else list(range(rank))
        return sorted(int(a) % rank for a in given.ravel())
