"""Weights that share a few values: codebooks by k-means, and which weight takes which value.

Deep Compression (S. Han, H. Mao and W. Dally, ICLR 2016) rounds each weight to the nearest value of its tensor's
codebook. With inputs at hand, more can be kept. A weight counts as much as its inputs are large, the codebook is
computed for weights that make up for the errors of the layers in front, and what rounding a column of the layer's matrix
changes is made up for by the columns that are still to be rounded: E. Frantar et al., "GPTQ", ICLR 2023, here with a
codebook in place of a grid. What remains goes into the layer's intercept, which isn't rounded.

Frequent values cost fewer bits after entropy coding. The codebook is therefore that of an entropy-constrained quantizer
(P. Chou, T. Lookabaugh and R. Gray, IEEE Trans. ASSP 37(1), 1989): the cost of a value is its squared error plus a
price for its bits, which makes small weights zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.model.stream import Batches, Stream
from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.operators.card import card_of
from onnxprune.progress import Progress, silent
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.recover.lstsq import WIDE, Moments
from onnxprune.recover.regression import LayerIndex, intercept_place, parameters, set_parameters

Floats = NDArray[np.float64]

SMALLEST = 256  # elements; a codebook for fewer isn't worth its bytes
_ROUNDS = 30  # of k-means, at most
_SAMPLED = 2**17  # weights that a codebook is computed from
_POSITIONS = 32, 4096  # of the output that are sampled: for each feature, and at least
_DAMPING = 0.01  # of the mean square of an input, added to all
_BLOCK = 64  # columns that are rounded before those after the block are corrected


@dataclass(frozen=True, slots=True)
class Codebook:
    """The values that the weights of a tensor share.

    Attributes:
        tensor: the initializer.
        values: the number of different values.
        error: mean squared error of the weights, relative to their mean square.
        trained: whether inputs were used.
    """

    tensor: str
    values: int
    error: float
    trained: bool


def cluster(
    model: ModelProto,
    count: int,
    batches: Batches | None = None,
    *,
    price: float = 0.0,
    keep: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Codebook, ...]:
    """Change the weights of a model in place, so that each tensor has a few different values. Zeros stay zeros.

    Args:
        model: a normalized model.
        count: the largest number of values of a tensor, zero included.
        batches: returns inputs; the same ones at each call. Without them, weights are rounded as they are.
        price: what a bit of a weight costs, relative to the mean square of the tensor's weights; 0 counts errors only.
        keep: patterns of initializers, or of nodes that read them, to leave as they are.
        seed: of the random choice of samples.
        progress: called with the tensors that are done.

    Returns:
        The codebooks, in the model's order.

    Raises:
        ModelError: ONNX Runtime can't run a part of the model (OP122).
    """
    stored = Weights(model)
    names = dict.fromkeys(shared(model, keep))
    layers = [layer for layer in find_layers(model) if layer.weight in names]
    found: dict[str, Codebook] = {}
    if batches is not None and layers:
        source = ModelProto()
        source.CopyFrom(model)
        index = LayerIndex(model, {layer.node.name: i for i, layer in enumerate(layers)}, {})
        now, then = Stream(model, batches), Stream(source, batches)
        samples = sum(max((len(a) for a in each.values() if a.ndim), default=1) for each in batches())
        for number, layer in enumerate(layers):
            if layer.features(stored.shape(layer.weight)) > WIDE:
                continue
            rng = np.random.default_rng((seed, number))
            for stream in (now, then):
                stream.advance(index.positions[layer.node.name])
            found[layer.weight] = _trained(layer, index, now, then, samples, count, price, rng)
            progress("cluster", number + 1, len(names))
    rng = np.random.default_rng(seed)
    for name in names:
        if name not in found:
            old = stored[name]
            weights = old.astype(np.float64)
            book = codebook(weights, np.ones_like(weights), count, price, rng)
            set_tensor(stored.tensor(name), _nearest(weights, *book)[0].astype(old.dtype))
            found[name] = _told(name, old, stored[name], trained=False)
            progress("cluster", len(found), len(names))
    return tuple(found[name] for name in names)


def shared(model: ModelProto, keep: Sequence[str] = ()) -> Iterator[str]:
    """Yield the initializers that `cluster` changes: real weights of operators that multiply or look them up."""
    stored, kept = Weights(model), set[str]()
    for pattern in keep:
        kept |= {name for name in stored if fnmatchcase(name, pattern)}
        kept |= {name for node in model.graph.node if fnmatchcase(node.name, pattern) for name in node.input}
    for node in model.graph.node:
        card = card_of(node.domain, node.op_type)
        places = card.factors if card.table is None else (*card.factors, card.table)
        for place in places:
            name = node.input[place] if place < len(node.input) else ""
            if name in stored and name not in kept and stored.dtype(name).kind == "f":
                shape = stored.shape(name)
                if len(shape) > 1 and np.prod(shape) >= SMALLEST and np.isfinite(stored[name]).all():
                    kept.add(name)
                    yield name


def codebook(
    weights: Floats, importance: Floats, count: int, price: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the values that weights are rounded to, sorted, and what each costs besides its error.

    Args:
        weights: the weights; if any is zero, zero is one of the values.
        importance: how much the squared error of each counts, of their shape.
        count: the largest number of values.
        price: see `cluster`.
        rng: chooses the weights that are looked at if there are many.
    """
    x, h = weights.ravel(), importance.ravel() / max(float(importance.mean()), 1e-300)
    unit = price * float(np.mean(x**2))
    zeros = float(np.mean(x == 0))
    x, h = x[x != 0], h[x != 0]
    if len(x) > _SAMPLED:
        some = rng.choice(len(x), _SAMPLED, replace=False)
        x, h = x[some], h[some]
    distinct = np.unique(x)
    room = count - (zeros > 0)
    if len(distinct) <= room:
        values = distinct
        return (np.union1d(values, [0.0]) if zeros else values), np.zeros(len(values) + (zeros > 0))
    order = np.argsort(x)
    x, h = x[order], h[order]
    if zeros or price:
        values = _spread(x, h, count - 1)
        values = np.insert(values, np.searchsorted(values, 0.0), 0.0)
    else:
        values = _spread(x, h, count)
    rates = np.zeros(len(values))
    for _ in range(_ROUNDS):
        if zeros:
            own = np.flatnonzero(values != 0)
            picked = own[_choose(x, values[own], rates[own])]
        else:
            picked = _choose(x, values, rates)
        mass = np.bincount(picked, h, len(values))
        sums = np.bincount(picked, h * x, len(values))
        number = np.bincount(picked, minlength=len(values))
        moved = np.where((mass > 0) & ~((values == 0) & bool(zeros or price)), sums / np.maximum(mass, 1e-300), values)
        used = (number > 0) | ((values == 0) & bool(zeros or price))
        done = used.all() and np.allclose(moved, values, rtol=1e-5, atol=0)
        order = np.argsort(moved[used])
        values, number = moved[used][order], number[used][order]
        shares = np.maximum(number, 0.5) / max(number.sum(), 1)
        rates = -unit * np.log2(shares) if price else np.zeros(len(values))
        if done:
            break
    return values, rates


def _spread(x: Floats, h: Floats, count: int) -> Floats:
    """Return values to begin with: evenly spaced over the range that holds nearly all weights."""
    low, high = np.quantile(x, [0.002, 0.998])
    return np.unique(np.linspace(low, high, count))


def _choose(x: Floats, values: Floats, rates: Floats) -> NDArray[np.intp]:
    """Return the index of the value with the least cost for each weight; values are sorted."""
    if not rates.any():
        return np.searchsorted((values[1:] + values[:-1]) / 2, x)
    return np.argmin((x[..., None] - values) ** 2 + rates, axis=-1)


def _nearest(x: Floats, values: Floats, rates: Floats) -> tuple[Floats, NDArray[np.intp]]:
    picked = _choose(x, values, rates)
    return np.where(x == 0, 0.0, values[picked]), picked


def _trained(
    layer: LinearLayer, index: LayerIndex, now: Stream, then: Stream, samples: int, count: int, price: float, rng: Any
) -> Codebook:
    place = intercept_place(layer, index)
    moments, width = Moments(), layer.features(index.weights.shape(layer.weight))
    some = 0
    for have, goal in zip(now.tensors([layer.x]), then.tensors([layer.y]), strict=True):
        x, y = have[layer.x], goal[layer.y]
        some = some or -(-max(_POSITIONS[0] * width, _POSITIONS[1]) * len(x) // samples)
        features, targets = layer.sample(x, [y], some, rng)
        moments.add(features, targets[0], intercept=place is not None)
    old = index.weights[layer.weight]
    start = parameters(layer, index.weights)
    fitted = moments.solve(start, RIDGE) if RIDGE is not None else start
    fitted[..., :-1] *= start[..., :-1] != 0
    power = np.einsum("gff->gf", moments.gram)[:, None, :-1]
    values, rates = codebook(fitted[..., :-1], np.broadcast_to(power, fitted[..., :-1].shape), count, price, rng)
    rounded = round_columns(fitted, moments.gram, values, rates, intercept=place is not None)
    set_parameters(layer, index.weights, place, rounded)
    return _told(layer.weight, old, index.weights[layer.weight], trained=True)

RIDGE = 0.1
def round_columns(
    matrix: Floats, gram: Floats, values: Floats, rates: Floats, *, intercept: bool
) -> Floats:
    """Round the columns of a layer's matrix one after the other; those that follow make up for the errors.

    Args:
        matrix: shape (groups, outputs, features + 1), the last column the intercept. What is zero stays zero.
        gram: sum of x x^T over the layer's inputs x, shape (groups, features + 1, features + 1).
        values: the codebook, sorted.
        rates: what each of its values costs besides the error.
        intercept: whether the last column may change.
    """
    size = matrix.shape[2] - (not intercept)
    w, zero = matrix[..., :size].copy(), matrix[..., :size] == 0
    h = gram[:, :size, :size].copy()
    diagonal = np.einsum("gff->gf", h)
    mean = np.maximum(diagonal[:, : matrix.shape[2] - 1].mean(axis=1, keepdims=True), 1e-30)
    h += np.eye(size) * (_DAMPING * mean)[:, :, None]
    order = np.argsort(-diagonal[:, : matrix.shape[2] - 1].sum(axis=0))
    order = np.append(order, size - 1) if intercept else order
    back = np.argsort(order)
    w, zero, h = w[..., order], zero[..., order], h[:, order][:, :, order]
    upper = np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1)
    upper = np.linalg.cholesky(np.linalg.inv(h)[:, ::-1, ::-1])[:, ::-1, ::-1] if False else upper
    last = size - intercept
    for start in range(0, last, _BLOCK):
        stop = min(start + _BLOCK, last)
        errors = np.zeros((*w.shape[:2], stop - start))
        for j in range(start, stop):
            column = w[..., j]
            picked = _choose(column, values, rates)
            new = np.where(zero[..., j], 0.0, values[picked])
            errors[..., j - start] = (column - new) / upper[:, None, j, j]
            w[..., j] = new
            w[..., j + 1 : stop] -= errors[..., j - start, None] * upper[:, None, j, j + 1 : stop]
        w[..., stop:] -= errors @ upper[:, start:stop, stop:]
    found = matrix.copy()
    found[..., :size] = w[..., back]
    return found


def _told(name: str, old: NDArray[Any], new: NDArray[Any], *, trained: bool) -> Codebook:
    before, after = old.astype(np.float64), new.astype(np.float64)
    error = float(((after - before) ** 2).sum() / max(float((before**2).sum()), 1e-300))
    return Codebook(name, len(np.unique(new)), error, trained)
