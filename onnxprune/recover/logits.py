"""Refit the logits of attentions whose heads became narrower: a matrix of each head between queries and keys.

With fewer channels, the products q k^T of a head are no longer the original's. The matrix B for which q B k^T is
nearest to them, by least squares, is folded into the layer that makes the queries or the keys, whichever is last
(CORP, arXiv 2602.05243). A softmax takes no notice of what all keys have in common, so logits count by their
deviations from their mean for a query, and keys count as the original's softmax weights them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.values import Ids
from onnxprune.model.graph import GraphIndex
from onnxprune.model.metadata import sparse_weights
from onnxprune.model.stream import Stream as TensorStream
from onnxprune.model.tensors import Weights, multiplied, set_tensor
from onnxprune.recover.held_back import parts
from onnxprune.recover.layers import find_layers
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.products import Product
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.trace.streams import Slot, Stream, find_streams

Matrix = NDArray[np.float64]

_QUERIES = 16  # of each sample
_STEPS = 24
_RIDGE = 1e-6  # of the mean square of a channel, for channels that are nearly combinations of others


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The products of some samples.

    Attributes:
        left: the queries, shape (samples, heads, left, channels).
        right: the keys, shape (samples, heads, right, channels).
        shares: how much each key counts for a query, shape (samples, heads, left, right).
        goal: the logits wanted, likewise.
    """

    left: Matrix
    right: Matrix
    shares: Matrix
    goal: Matrix

    def about_mean(self, logits: Matrix) -> Matrix:
        """Return the deviations of logits from their mean for each query."""
        return np.asarray(logits - (self.shares * logits).sum(axis=-1, keepdims=True))

    def logits(self, matrices: Matrix) -> Matrix:
        """Return what queries and keys give with a matrix of each head between them, about the mean."""
        return self.about_mean(self.left @ matrices @ self.right.swapaxes(-1, -2))

    def gradient(self, residual: Matrix) -> Matrix:
        """Return the gradient with respect to the matrices of half the weighted squares of residuals."""
        return np.asarray((self.left.swapaxes(-1, -2) @ (self.shares * residual) @ self.right).sum(axis=0))

    def squares(self, residual: Matrix) -> Matrix:
        """Return the weighted squares of residuals of each head."""
        return np.asarray((self.shares * residual**2).sum(axis=(0, 2, 3)))

    def in_coordinates(self, left: Matrix, right: Matrix) -> Part:
        """Return the part with queries and keys multiplied by matrices of each head."""
        return Part(self.left @ left, self.right @ right, self.shares, self.goal)


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """The products of an attention whose heads became narrower.

    Attributes:
        product: the product.
        shares: the tensor of the softmax behind it in the original, see `Product.weights`.
        place: the operand that is made last: 0 for queries, 1 for keys.
        slots: the weights that make it, with the position of each remaining channel of each head.
    """

    product: Product
    shares: str | None
    place: int
    slots: Mapping[Slot, Ids]

    @property
    def name(self) -> str:
        """The name of the node."""
        return str(self.product.node.name)

    def fit(self, now: TensorStream, then: TensorStream) -> tuple[Matrix, tuple[float, float]]:
        """Return the matrices, shape (heads, channels, channels), and the errors before and after.

        Errors are those of logits on samples held back, relative to their variance. Without such samples nothing
        changes.

        Args:
            now: the pruned network's tensors.
            then: the original's.
        """
        fitted, held = list[Part](), list[Part]()
        for i, part in enumerate(self._parts(now, then)):
            for some, into in parts(len(part.left), i, fitted, held):
                into.append(Part(part.left[some], part.right[some], part.shares[some], part.goal[some]))
        return refit(fitted, held)

    def fold(self, weights: Weights, matrices: Matrix) -> None:
        """Multiply matrices into the weights."""
        factors = matrices if self.place == 0 else matrices.swapaxes(1, 2)
        for (name, axis), positions in self.slots.items():
            old = weights[name]
            new = multiplied(old.astype(np.float64), axis, positions, factors)
            set_tensor(weights.tensor(name), np.ascontiguousarray(new.astype(old.dtype)))

    def _parts(self, now: TensorStream, then: TensorStream) -> Iterator[Part]:
        product, operands = self.product, self.product.node.input[:2]
        wanted = [product.node.output[0], *([self.shares] if self.shares else [])]
        for have, goals in zip(now.tensors(operands), then.tensors(wanted), strict=True):
            left, right = (product.operand(i, have[name]) for i, name in enumerate(operands))
            shares = product.shares(goals.get(self.shares or ""), left, right)
            some = np.linspace(0, left.shape[2] - 1, min(_QUERIES, left.shape[2])).round().astype(int)
            goal = product.result(goals[wanted[0]])[:, :, some]
            part = Part(left[:, :, some], right, shares[:, :, some], goal)
            yield Part(part.left, right, part.shares, part.about_mean(goal))


def narrowed(kept: PrunedGraph, pruned: ModelProto) -> dict[str, Logits]:
    """Return the attentions whose heads became narrower, by the name of the last layer that makes their operands.

    Left out are those whose queries or keys something else reads too, and those whose weights keep their zeros.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the rewritten model.
    """
    graph, index = kept.graph, GraphIndex(kept.graph.proto.graph)
    if all(group.exact for group in graph.groups):
        return {}
    every = find_layers(pruned)
    layers = {layer.weight: (i, layer.node.name) for i, layer in enumerate(every)}
    runs = {node.name for node in pruned.graph.node if graph.unmade.isdisjoint(node.output)}
    fixed, found = sparse_weights(pruned), dict[str, Logits]()
    for stream in find_streams(graph)[0].values():
        slots, gone = stream.slots, kept.removed[stream.units].any()
        if not gone or [p.node.name in runs for p in stream.products] != [True]:
            continue
        (product,) = stream.products
        sides = [_made_from(index, name) & {tensor for tensor, _ in slots} for name in product.node.input[:2]]
        makers = [[layers[name] for name in side if name in layers] for side in sides]
        if [len(own) for own in makers] != [1, 1]:
            continue
        place = makers.index(max(makers))
        mine = {slot: at for slot, at in _remaining(stream, kept).items() if slot[0] in sides[place]}
        readers = {tensor for tensor, _ in graph.summed & slots.keys()}
        read = [layer.x for layer in every if layer.weight in readers]
        if not sides[0].isdisjoint(sides[1]):  # one weight makes both
            names = product.node.input
            own, *others = (_copy(index, graph, stream, name) for name in (names[place], names[1 - place], *read))
            if own is None or None in others or own in others:
                continue
            mine = {slot: at[:, [own]] if at.shape[1] > 1 else at for slot, at in mine.items()}
        elif read:
            continue
        if sides[place].isdisjoint(fixed):
            found[makers[place][0][1]] = Logits(product, product.weights(index), place, mine)
    return found


def _copy(index: GraphIndex, graph: ChannelGraph, stream: Stream, tensor: str) -> int | None:
    """Return which copy of each channel of the weights a tensor is made from; None if that isn't one of several."""
    found, open_ = set[int | None](), [tensor]
    while open_:
        name = open_.pop()
        value = graph.values.get(name)
        ids = [i for factor in (() if value is None else value.factors) for i in factor.ids.ravel().tolist()]
        if not np.isin(graph.unit_of[ids], stream.units).any():
            continue
        whole = [
            np.all(np.isin(graph.slots[slot][positions], ids), axis=(0, 2)) for slot, positions in stream.slots.items()
        ]
        own = {int(np.argmax(rows)) for rows in whole if len(rows) > 1 and np.count_nonzero(rows) == 1}
        if own or name not in index.makers:
            found |= own or {None}
        else:
            open_ += index.makers[name].input
    return found.pop() if len(found) == 1 else None


def _made_from(index: GraphIndex, tensor: str) -> set[str]:
    """Return the tensors that one depends on."""
    found, open_ = set[str](), [tensor]
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_ += index.makers[name].input if name in index.makers else ()
    return found


def _remaining(stream: Stream, kept: PrunedGraph) -> dict[Slot, Ids]:
    """Return the positions of the channels that remain in what remains of each weight."""
    left = ~kept.removed[stream.units]
    found = {}
    for (name, axis), positions in stream.slots.items():
        removed = kept.removed[kept.graph.unit_of[kept.graph.slots[name, axis]]]
        found[name, axis] = (np.cumsum(~removed) - 1)[positions[..., left]]
    return found


def refit(fitted: Sequence[Part], held: Sequence[Part]) -> tuple[Matrix, tuple[float, float]]:
    """Return matrices by conjugate gradients, and the relative error on the parts held back before and after.

    They start from the identity and go on as long as the error on the parts held back falls. Queries and keys are
    brought to unit second moments first, so that few steps do. (M. Hestenes and E. Stiefel, "Methods of conjugate
    gradients for solving linear systems", 1952; stopped early in place of a ridge.)

    Args:
        fitted: the parts to fit.
        held: others.
    """
    judged = held or fitted
    heads, size = judged[0].left.shape[1], judged[0].left.shape[3]
    whole = max(float(sum(part.squares(part.goal).sum() for part in judged)), 1e-30)

    def error(parts: Sequence[Part], found: Matrix) -> float:
        return float(sum(part.squares(part.goal - part.logits(found)).sum() for part in parts)) / whole

    one = np.broadcast_to(np.eye(size), (heads, size, size))
    before = error(judged, one)
    if not (fitted and held):
        return one, (before, before)
    left, right = (_whitening([getattr(part, side) for part in fitted]) for side in ("left", "right"))
    fitted, held = ([part.in_coordinates(left, right) for part in some] for some in (fitted, held))
    found = np.linalg.inv(left) @ np.linalg.inv(right).swapaxes(1, 2)
    residual = np.sum([part.gradient(part.goal - part.logits(found)) for part in fitted], axis=0)
    step, best, after = residual, one, before
    for _ in range(_STEPS):
        curved = np.sum([part.gradient(part.logits(step)) for part in fitted], axis=0)
        power = (residual**2).sum(axis=(1, 2))
        length = power / np.maximum((step * curved).sum(axis=(1, 2)), 1e-30)
        found = found + length[:, None, None] * step
        now = error(held, found)
        if not now < after:
            break
        best, after = left @ found @ right.swapaxes(1, 2), now
        residual = residual - length[:, None, None] * curved
        step = residual + ((residual**2).sum(axis=(1, 2)) / np.maximum(power, 1e-30))[:, None, None] * step
    return best, (before, after)


def _whitening(arrays: Sequence[Matrix]) -> Matrix:
    """Return for each head the matrix that brings rows to unit second moments, shape (heads, channels, channels)."""
    gram = np.sum([np.einsum("bhic,bhid->hcd", a, a, optimize=True) for a in arrays], axis=0)
    count = sum(a.shape[0] * a.shape[2] for a in arrays)
    values, vectors = np.linalg.eigh(gram / max(count, 1))
    least = _RIDGE * np.maximum(values.mean(axis=1, keepdims=True), 1e-30)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 0) + least)[:, None, :]) @ vectors.swapaxes(1, 2))
