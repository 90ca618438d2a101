"""Statistics of products of two activations over channels, as of queries and keys, when the network runs on inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.model.graph import GraphIndex
from onnxprune.model.stream import Batches, Stream as TensorStream
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.products import Product
from onnxprune.trace.streams import Stream, find_streams

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ProductMoments:
    """Second moments of what is multiplied, each relative to its trace over all heads.

    A softmax takes no notice of what all keys have in common. So keys count by their deviations from their mean for a
    query, weighted as the softmax weights them.

    Attributes:
        units: the unit of each channel, shape (channels,).
        left: moments of the queries, shape (heads, channels, channels).
        right: covariance of the keys, likewise.
    """

    units: NDArray[np.int64]
    left: Matrix
    right: Matrix

    def scores(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return for each unit the variance that logits lose once it leaves after all cheaper ones.

        It is relative to that of the whole logits, as if queries and keys were independent.

        Args:
            units: the units, in the order to return.
        """
        joint = (self.left * self.right).sum(axis=0)  # what pairs of channels contribute
        total, costs, left = max(float(joint.sum()), 1e-30), joint.diagonal().copy(), np.ones(len(joint), dtype=bool)
        scores, worst = np.zeros(len(joint)), 0.0
        while left.any():
            cheapest = int(np.argmin(np.where(left, costs, np.inf)))
            worst = max(worst, float(costs[cheapest]))
            scores[cheapest], left[cheapest] = worst, False
            costs += 2 * joint[cheapest]
        order = np.argsort(self.units)
        return np.asarray(scores[order[np.searchsorted(self.units, units, sorter=order)]] / total)


def common_directions(*moments: Matrix) -> Matrix:
    """Return orthogonal directions of each head, those first that several moments have most of, as columns.

    These are the eigenvectors of the sum of the moments, each relative to its trace. If queries or keys have none of a
    direction, neither do the logits; the sum of their moments finds what both have little of. On all-MiniLM-L6-v2 half
    of a head's directions kept 97 % of the logits' variance, within 0.3 points of the best factors of that rank.

    Args:
        moments: symmetric matrices of each head, shape (heads, channels, channels) each.
    """
    each = (m / np.maximum(np.trace(m, axis1=1, axis2=2), 1e-30)[:, None, None] for m in moments)
    return np.asarray(np.linalg.eigh(np.sum(list(each), axis=0))[1][:, :, ::-1])


class Products:
    """The products of a network's groups, with their moments; the network is run once they are asked for."""

    def __init__(self, graph: ChannelGraph, batches: Batches) -> None:
        """Take a traced network and a function that returns inputs."""
        self._graph, self._batches = graph, batches

    def of(self, group: Group) -> tuple[ProductMoments, ...]:
        """Return the moments of the products that sum over a group's channels; none if its basis is fixed."""
        return () if group.exact else self._all.get(group.index, ())

    @cached_property
    def _all(self) -> dict[int, tuple[ProductMoments, ...]]:
        return gather_products(self._graph, find_streams(self._graph)[0].values(), self._batches)


def gather_products(
    graph: ChannelGraph, streams: Iterable[Stream], batches: Batches
) -> dict[int, tuple[ProductMoments, ...]]:
    """Run a network on inputs, and return the moments of the products of groups, by the group's index.

    Args:
        graph: the traced network.
        streams: the groups whose basis can be changed.
        batches: returns the inputs.

    Raises:
        ModelError: ONNX Runtime can't run the network on the inputs.
    """
    index, run = GraphIndex(graph.proto.graph), TensorStream(graph.proto, batches, unmade=graph.unmade)
    every = [(index.positions[product.node.name], stream, product) for stream in streams for product in stream.products]
    found: dict[int, list[ProductMoments]] = {}
    for position, stream, product in sorted(every, key=lambda entry: entry[0]):
        if graph.unmade.isdisjoint(product.node.input):
            run.advance(position)
            found.setdefault(stream.group.index, []).append(_moments(stream, product, product.weights(index), run))
    return {group: tuple(moments) for group, moments in found.items()}


def _moments(stream: Stream, product: Product, weights: str | None, run: TensorStream) -> ProductMoments:
    size = stream.heads, stream.size, stream.size
    left, right = np.zeros(size), np.zeros(size)
    names = [*product.node.input[:2], *([weights] if weights else [])]
    for batch in run.tensors(names):
        queries, keys = (product.operand(i, batch[product.node.input[i]]) for i in (0, 1))
        shares = product.shares(None if weights is None else batch[weights], queries, keys)
        means = shares @ keys
        left += np.einsum("bhic,bhid->hcd", queries, queries, optimize=True)
        right += np.einsum("bhj,bhjc,bhjd->hcd", shares.sum(axis=2), keys, keys, optimize=True)
        right -= np.einsum("bhic,bhid->hcd", means, means, optimize=True)
    return ProductMoments(stream.units, left, right)
