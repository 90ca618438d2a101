"""Weights that share a few values: codebooks by k-means, and which weight takes which value.

Deep Compression (S. Han, H. Mao and W. Dally, ICLR 2016) rounds each weight to the nearest value of its tensor's
codebook. With inputs at hand, more can be kept. A weight counts as much as its inputs are large, the codebook is
computed for weights that make up for the errors of the layers in front, and what rounding a column of a layer's matrix
changes is made up for by the columns that are still to be rounded: E. Frantar et al., "GPTQ", ICLR 2023, here with a
codebook in place of a grid. What remains goes into the layer's intercept, which isn't rounded.

Frequent values cost fewer bits after entropy coding. The codebook is therefore that of an entropy-constrained quantizer
(P. Chou, T. Lookabaugh and R. Gray, IEEE Trans. ASSP 37(1), 1989): the cost of a value is its squared error plus a
price for its bits, which makes small weights zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.model.stream import Batches, Stream
from onnxprune.model.tensors import Weights, set_tensor
from onnxprune.operators.card import card_of
from onnxprune.progress import Progress, silent
from onnxprune.recover.columns import column_by_column, factor
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.recover.lstsq import WIDE, Moments
from onnxprune.recover.regression import LayerIndex, intercept_place, parameters, set_parameters

Floats = NDArray[np.float64]

SMALLEST = 256  # elements; a codebook for fewer isn't worth its bytes
_ROUNDS = 30  # of k-means, at most
_SAMPLED = 2**17  # weights that a codebook is computed from
_PER_FEATURE, _FEWEST = 32, 4096  # output positions that are sampled
_RIDGE = 0.1  # how far a layer stays near its weights while it makes up for errors in front of it
_DAMPING = 0.01  # of the mean square of an input, added to all
_PRICE = 0.05


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
    price: float | None = None,
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
            By default 0.05 with inputs, as errors are made up for, else 0.
        keep: patterns of initializers, or of nodes that read them, to leave as they are.
        seed: of the random choice of samples.
        progress: called with the tensors that are done.

    Returns:
        The codebooks, in the model's order.

    Raises:
        ModelError: ONNX Runtime can't run a part of the model (OP122).
    """
    stored, rng = Weights(model), np.random.default_rng(seed)
    names, done = list(dict.fromkeys(shared(model, keep))), dict[str, Codebook]()
    old = {name: stored[name] for name in names}

    worth = price if price is not None else _PRICE if batches is not None else 0.0

    def books(weights: Floats, importance: Floats) -> Book:
        return codebook(weights, importance, count, worth, rng)

    def finish(name: str, *, trained: bool) -> None:
        done[name] = _told(name, old.pop(name), stored[name], trained=trained)
        progress("cluster", len(done), len(names))

    if batches is not None:
        layers = [layer for layer in find_layers(model) if layer.weight in old]
        layers = [layer for layer in layers if layer.features(stored.shape(layer.weight)) <= WIDE]
        source = ModelProto()
        source.CopyFrom(model)
        index = LayerIndex(model, {}, {})
        now, then = Stream(model, batches), Stream(source, batches)
        samples = sum(max((len(a) for a in each.values() if a.ndim), default=1) for each in batches())
        for layer in layers:
            for stream in (now, then):
                stream.advance(index.positions[layer.node.name])
            if _trained(layer, index, now, then, samples, books, rng):
                finish(layer.weight, trained=True)
    for name in list(old):
        weights = old[name].astype(np.float64)
        book = books(weights, np.ones_like(weights))
        rounded = np.where(weights == 0, 0.0, book.rounded(weights))
        set_tensor(stored.tensor(name), rounded.astype(old[name].dtype))
        finish(name, trained=False)
    return tuple(done[name] for name in names)


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


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """Values to round weights to.

    Attributes:
        values: the values, sorted.
        rates: what each costs besides the squared error.
    """

    values: Floats
    rates: Floats

    def choose(self, x: Floats) -> NDArray[np.intp]:
        """Return the index of the value with the least cost for each number."""
        if not self.rates.any():
            return np.searchsorted((self.values[1:] + self.values[:-1]) / 2, x)
        best, cost = np.zeros(x.shape, np.intp), np.full(x.shape, np.inf)
        for i, (value, rate) in enumerate(zip(self.values, self.rates, strict=True)):
            own = (x - value) ** 2 + rate
            closer = own < cost
            best[closer], cost[closer] = i, own[closer]
        return best

    def rounded(self, x: Floats) -> Floats:
        """Return the value with the least cost for each number."""
        return self.values[self.choose(x)]


def codebook(weights: Floats, importance: Floats, count: int, price: float, rng: np.random.Generator) -> Book:
    """Return values to round weights to, by k-means.

    Args:
        weights: the weights; if any is zero, or bits have a price, zero is one of the values.
        importance: how much the squared error of each counts, of their shape.
        count: the largest number of values.
        price: see `cluster`.
        rng: chooses the weights that are looked at if there are many.
    """
    filled = weights != 0
    x, h = weights[filled], importance[filled]
    zero = bool(price) or not filled.all()
    if len(x) > _SAMPLED:
        some = rng.choice(len(x), _SAMPLED, replace=False)
        x, h = x[some], h[some]
    values = np.unique(x)
    if len(values) > count - zero:
        low, high = np.quantile(x, [0.002, 0.998])
        values = np.linspace(low, high, count - zero)
    values = np.union1d(values, [0.0]) if zero else values
    book, unit = Book(values, np.zeros(len(values))), price * float(np.mean(weights**2))
    h = h / max(float(h.mean()), 1e-300) if h.size and h.any() else np.ones_like(h)
    for _ in range(_ROUNDS):
        picked = book.choose(x)
        number, mass = np.bincount(picked, minlength=len(book.values)), np.bincount(picked, h, len(book.values))
        sums = np.bincount(picked, h * x, len(book.values))
        held = (mass == 0) | ((book.values == 0) & zero)
        moved = np.where(held, book.values, sums / np.where(held, 1.0, mass))
        used = (number > 0) | ((moved == 0) & zero)
        order = np.argsort(moved[used])
        rates = -unit * np.log2(np.maximum(number, 0.5) / max(len(x), 1)) if price else np.zeros(len(moved))
        before, book = book, Book(moved[used][order], rates[used][order])
        if len(before.values) == len(book.values) and np.allclose(before.values, book.values, rtol=1e-5, atol=0):
            break
    return book


def _trained(
    layer: LinearLayer,
    index: LayerIndex,
    now: Stream,
    then: Stream,
    samples: int,
    books: Callable[[Floats, Floats], Book],
    rng: np.random.Generator,
) -> bool:
    """Fit a layer to its output in the original, and round its weights; not if its inputs or targets aren't finite."""
    place = intercept_place(layer, index)
    moments, width = Moments(), layer.features(index.weights.shape(layer.weight))
    for have, goal in zip(now.tensors([layer.x]), then.tensors([layer.y]), strict=True):
        x, y = have[layer.x], goal[layer.y]
        share = len(x) / samples if len(x) == len(y) else 1.0
        some = ceil(max(_PER_FEATURE * width, _FEWEST) * share)
        features, targets = layer.sample(x, [y], some, rng)
        moments.add(features, targets[0], intercept=place is not None)
    if not (np.isfinite(moments.gram).all() and np.isfinite(moments.cross).all()):
        return False
    start = parameters(layer, index.weights)
    fitted = moments.solve(start, _RIDGE)
    fitted[..., :-1] *= start[..., :-1] != 0
    power = np.einsum("gff->gf", moments.gram)[:, None, :-1]
    book = books(fitted[..., :-1], np.broadcast_to(power, fitted[..., :-1].shape))
    set_parameters(layer, index.weights, place, round_columns(fitted, moments.gram, book, intercept=place is not None))
    return True


def round_columns(matrix: Floats, gram: Floats, book: Book, *, intercept: bool) -> Floats:
    """Round the columns of a layer's matrix one after the other; those that follow make up for the errors.

    Args:
        matrix: shape (groups, outputs, features + 1), the last column the intercept. What is zero stays zero.
        gram: sum of x x^T over the layer's inputs x, shape (groups, features + 1, features + 1).
        book: the codebook.
        intercept: whether the last column may change; it isn't rounded.
    """
    features = matrix.shape[2] - 1
    size = features + intercept
    h = gram[:, :size, :size]
    power = np.einsum("gff->gf", h)[:, :features]
    h = h + np.eye(size) * (_DAMPING * np.maximum(power.mean(axis=1), 1e-30))[:, None, None]
    order = np.argsort(-power.sum(axis=0))  # what counts most comes first: all others can make up for it
    order = np.append(order, features) if intercept else order
    zero = matrix[..., order] == 0

    def rounded(weights: Floats, column: int) -> Floats:
        own = weights[..., column]
        return own if column == features else np.where(zero[..., column], 0.0, book.rounded(own))

    found = matrix.copy()
    found[..., order] = column_by_column(matrix[..., order], factor(h[:, order][:, :, order]), rounded)
    return found


def _told(name: str, old: NDArray[Any], new: NDArray[Any], *, trained: bool) -> Codebook:
    before, after = old.astype(np.float64), new.astype(np.float64)
    error = float(((after - before) ** 2).sum() / max(float((before**2).sum()), 1e-300))
    return Codebook(name, len(np.unique(new)), error, trained)
