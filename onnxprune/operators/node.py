"""A node of a graph as every kind of rule sees it: its attributes and optional inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels.values import Shape
from onnxprune.model.graph import attribute


class Node:
    """One node. Tracing, rewriting and gradient rules get subclasses of it, which add what they work on.

    Attributes:
        node: the node.
        version: the version of its operator's domain.
    """

    def __init__(self, node: NodeProto, version: int = 1) -> None:
        """Wrap a node."""
        self.node = node
        self.version = version

    @property
    def label(self) -> str:
        """The name of the node in messages."""
        return f'{self.node.op_type} "{self.node.name}"'

    def has(self, i: int) -> bool:
        """Whether the optional input ``i`` is given."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, strings decoded, or the default."""
        return attribute(self.node, name, default)

    def shape(self, i: int) -> Shape:
        """Return the original shape of input ``i``."""
        raise NotImplementedError

    def const(self, i: int) -> NDArray[Any] | None:
        """Return the value of input ``i`` as a parameter; None if it isn't given or only known at run time."""
        raise NotImplementedError

    def param(self, i: int, name: str) -> NDArray[Any] | None:
        """Return a parameter that is input ``i`` in newer opsets and the attribute ``name`` in older ones."""
        value = self.attr(name)
        return self.const(i) if value is None else np.asarray(value)

    def axis(self, default: int = 0, *, rank: int | None = None) -> int:
        """Return the attribute ``axis``, counted from the left."""
        rank = len(self.shape(0)) if rank is None else rank
        return int(self.attr("axis", default)) % max(rank, 1)
