"""Products of two activations over channels, such as those of the queries and keys of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.model.graph import GraphIndex, attribute

_BATCH = "abcdefgh"
_PASSED = ("Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity")  # between the products and their softmax


def terms_of(node: NodeProto, ranks: Sequence[int]) -> tuple[str, str, str] | None:
    """Return the axes of a product's two operands and of its result as letters, the same for axes that meet.

    Args:
        node: the node.
        ranks: the number of axes of its inputs.

    Returns:
        None for other nodes, and for products of more operands, vectors or diagonals.
    """
    if node.op_type == "MatMul" and len(ranks) == 2 and min(ranks) > 1 and max(ranks) <= len(_BATCH):
        batch = _BATCH[: max(ranks) - 2]
        left, right = (batch[max(ranks) - rank :] for rank in ranks)
        return f"{left}mk", f"{right}kn", f"{batch}mn"
    if node.op_type == "Einsum":
        written = str(attribute(node, "equation", "")).replace(" ", "")
        operands, arrow, result = written.partition("->")
        terms = [*operands.split(","), result]
        plain = all(len(set(term)) == len(term) and term.isalpha() for term in terms)
        if arrow and plain and [len(term) for term in terms[:-1]] == list(ranks) and len(ranks) == 2:
            return terms[0], terms[1], result
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product of two activations, summed over the channels of a group.

    Attributes:
        node: the node.
        terms: the axes of its operands and of its result as letters, see `terms_of`.
        channel: the letter of the channels.
        head: the letter of the heads; empty if there is one head.
    """

    node: NodeProto
    terms: tuple[str, str, str]
    channel: str
    head: str

    def operand(self, place: int, array: NDArray[Any]) -> NDArray[np.float64]:
        """Return an operand as an array of shape (samples, heads, positions, channels)."""
        return self._arranged(array, self.terms[place], self._own(place), self.channel)

    def result(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Return an array of the result's shape as one of shape (samples, heads, left positions, right positions)."""
        left, right = self._own(0), self._own(1)
        return self._arranged(array, self.terms[2], left, right)

    def shares(
        self, weights: NDArray[Any] | None, left: NDArray[np.float64], right: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return how much each right position counts for a left one, shape (samples, heads, left, right).

        Args:
            weights: what `weights` names; None to count all alike.
            left: the left operand, as `operand` returns it.
            right: the right operand.
        """
        if weights is not None:
            return self.result(weights)
        return np.full((*left.shape[:3], right.shape[2]), 1 / max(right.shape[2], 1))

    def weights(self, index: GraphIndex) -> str | None:
        """Return the softmax over the right positions that the result goes into; None if that isn't found."""
        tensor, right = str(self.node.output[0]), self._own(1)
        while (node := index.only_reader(tensor)) is not None and node.op_type in _PASSED:
            tensor = node.output[0]
        if node is None or node.op_type != "Softmax" or len(right) != 1:
            return None
        axis = int(attribute(node, "axis", -1)) % len(self.terms[2])
        return str(node.output[0]) if self.terms[2][axis] == right else None

    def _own(self, place: int) -> str:
        """Return the axes that one operand alone brings to the result."""
        return "".join(a for a in self.terms[place] if a in self.terms[2] and a not in self.terms[1 - place])

    def _arranged(self, array: NDArray[Any], term: str, positions: str, last: str) -> NDArray[np.float64]:
        """Return an array as one of four axes: samples, heads, and two others, each of any number of axes."""
        samples = [a for a in self.terms[2] if a in self.terms[0] and a in self.terms[1] and a != self.head]
        order = [*samples, *self.head, *positions, *last]
        sizes = dict(zip(term, array.shape, strict=True))
        moved = array.transpose([term.index(a) for a in order if a in sizes])
        parts = samples, self.head, positions, last
        return moved.reshape([prod(sizes.get(a, 1) for a in part) for part in parts]).astype(np.float64)
