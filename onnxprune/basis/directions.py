"""Choose directions of channels, the one that matters most first: from what readers see on data, or from weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxprune.basis.reflections import as_text
from onnxprune.basis.rotate import Bases
from onnxprune.basis.streams import Stream, find_streams
from onnxprune.importance.activations import Activations, LayerActivations, gather
from onnxprune.model.stream import Batches
from onnxprune.model.tensors import Weights
from onnxprune.trace.graph import ChannelGraph

Matrix = NDArray[np.float64]

_RIDGE = 1e-3  # of the weights' mean square, for channels that readers' weights can't tell apart


def choose_bases(graph: ChannelGraph, batches: Batches | None = None, *, seed: int = 0) -> Bases:
    """Return a basis for every group of channels whose basis can be changed.

    A reader computes W x. If it gets only k combinations E x, and its weights are refitted, then the combinations that
    leave the least error span the same space as the first k columns of C^-1/2 U, where C is the covariance of x and U
    are the eigenvectors of C^1/2 W' W C^1/2, the largest eigenvalue first. With several readers, the covariances and
    the squares of the weights are summed, each relative to the variance of the reader's outputs.

    Args:
        graph: the traced model.
        batches: returns inputs; without any, what is read is taken to vary as the producers' weights do.
        seed: random seed of the choice of positions.

    Raises:
        ModelError: ONNX Runtime can't run the model on the inputs.
        UsageError: there are no inputs (OP604).
    """
    streams, _ = find_streams(graph)
    found: dict[int, Activations] = {}
    if batches is not None:
        groups = [stream.group for stream in streams.values()]
        found = {group.index: read for group, read in gather(graph, groups, batches, seed=seed)}
    bases: dict[str, dict[int, str]] = {}
    weights = Weights(graph.proto)
    for index, stream in streams.items():
        readers = found.get(index, ())
        moments = _on_data(stream, readers) if readers else _of_weights(graph, stream, weights)
        tensor, axis = stream.key
        bases.setdefault(tensor, {})[axis] = as_text(directions(*moments))
    return bases


def directions(covariance: Matrix, importance: Matrix) -> Matrix:
    """Return combinations of channels, those first that readers need most, as columns, shape (n, n).

    Args:
        covariance: of the channels, shape (n, n).
        importance: the squares W' W of the readers' weights, likewise.
    """
    values, vectors = np.linalg.eigh(importance)
    mean = max(float(values.mean()), 1e-30)
    root = (vectors * np.sqrt(np.maximum(values, 0) + _RIDGE * mean)) @ vectors.T
    _, found = np.linalg.eigh(root @ covariance @ root)
    return np.asarray(root @ found[:, ::-1])


def _on_data(stream: Stream, readers: Activations) -> tuple[Matrix, Matrix]:
    """Return the covariance of a group's channels, and the squares of the weights that read them."""
    covariance, importance = np.zeros((stream.size, stream.size)), np.zeros((stream.size, stream.size))
    for reader in readers:
        seen, square = reader.covariance[0], reader.parameters[0].T @ reader.parameters[0]
        scale = 1 / reader.variance
        for tap in _taps(stream, reader):
            covariance += scale * seen[np.ix_(tap, tap)]
            importance += scale * square[np.ix_(tap, tap)]
    return covariance, importance


def _taps(stream: Stream, reader: LayerActivations) -> Iterator[NDArray[np.intp]]:
    """Yield for each tap of a reader's kernel its features of the group's channels, in their order."""
    order = np.argsort(reader.units[0], kind="stable")
    units = reader.units[0][order]
    first = np.searchsorted(units, stream.units)
    for tap in range(np.count_nonzero(units == stream.units[0])):
        yield order[first + tap]


def _of_weights(graph: ChannelGraph, stream: Stream, weights: Weights) -> tuple[Matrix, Matrix]:
    """Return what the covariance is if producers read noise, and the squares of the weights that read the group."""
    sums = {False: np.zeros((stream.size, stream.size)), True: np.zeros((stream.size, stream.size))}
    for (name, axis), positions in stream.slots.items():
        rows = np.moveaxis(weights[name].astype(np.float64), axis, -1)[..., positions].reshape(-1, stream.size)
        if weights.tensor(name).dims and len(weights.shape(name)) > 1:
            sums[(name, axis) in graph.summed] += rows.T @ rows
    return sums[False], sums[True]
