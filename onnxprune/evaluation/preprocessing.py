"""Which preprocessing of images suits a network: the usual ones are tried, and ranked by two kinds of evidence.

The first is how sure the network is: with labels, the share that is right; without, how much a prediction tells about
its image, the mutual information of the two. A network on wrong inputs is unsure of most images, or answers all of
them alike (A. Krause, P. Perona and R. Gomes, "Discriminative clustering by regularized information maximization",
NIPS 2010, use the same measure). The second is whether the first layer's outputs are of the size that it was trained
on: that of the running statistics of a BatchNormalization behind it, else within a factor of ten of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.numpy_helper import to_array

from onnxprune.cost.cost import model_cost
from onnxprune.data import Data, Recipe
from onnxprune.data.fit import Fit
from onnxprune.data.usual import USUAL
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation.classes import class_output, classes_of, floats, probabilities
from onnxprune.evaluation.intervals import Floats
from onnxprune.evaluation.runner import Runner
from onnxprune.model.graph import extract
from onnxprune.normalize import normalize
from onnxprune.progress import Progress, silent
from onnxprune.shapes import concretize

_IMAGES = 8, 32  # fewest and most images
_MACS = 1e11  # of running the network on all images in one way: no limit of time, so that runs can be repeated
_ALIKE = 0.02  # of the range of values, within which two ways are the same
_SURENESS = 0.6  # weight of how sure the network is; the size of the first layer's outputs has the rest
_KNOWN = 0.3  # the same where running statistics tell the size
_LABELED = 0.9  # the same with labels
_CHANCE = 3.0  # times chance, from which on labels are believed
_CLOSE = 0.05  # difference of scores that decides nothing
_DRAWS, _DOUBT = 200, 0.1  # bootstrap draws, and the share of them in which another way may be better
_TURNED = 2  # ways that are also tried in BGR order
_LAYERS = ("Conv", "Gemm", "MatMul", "FusedConv")
_KEYS = ("channels", "scale", "mean", "std")
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What was found.

    Attributes:
        input: the model's input.
        recipes: the ways that can't be told apart, the one that is used first; a single one if the images tell. They
            have the user's keys, and those of values.
        tried: the number of ways tried.
        samples: the number of images.
    """

    input: str
    recipes: tuple[Recipe, ...]
    tried: int
    samples: int

    def __str__(self) -> str:
        """Return what a warning says."""
        how = f"of {self.tried} usual ways, tried on {self.samples} images,"
        first, *others = (f"'{recipe}'" for recipe in self.recipes)
        if not others:
            return f"the preprocessing is a guess: {how} the network answers best with `preprocess` {first}; check it"
        alike = f"{', '.join(others[:2])}{' and others' if len(others) > 2 else ''} would suit the network as well"
        return f"the preprocessing is a guess, `preprocess` {first}: {how} {alike}. Say which is right"


def suited(
    model: ModelProto, data: Data, *, seed: int = 0, progress: Progress = silent
) -> tuple[Data, Preprocessing | None]:
    """Return data with the usual preprocessing that suits a network best, and what was found.

    Data whose preprocessing isn't a guess stay as they are; so do data that the network can't be run on.

    Args:
        model: the network.
        data: images.
        seed: random seed of the choice of images, and of the bootstrap.
        progress: called before each way that is tried.

    Raises:
        DataError: the data can't be read.
    """
    guessed = [fit for fit in data.fits if fit.guessed]
    if len(guessed) != 1 or len(data.fits) != 1:
        return data, None
    with suppress(OnnxPruneError):
        return _Trials(model, data, guessed[0], seed).best(progress)
    return data, None


@dataclass(slots=True)
class _Evidence:
    """What the network makes of images that are preprocessed in one way.

    Attributes:
        likely: the mean probabilities of each image, [images, columns].
        unsure: the entropy of each image's probabilities.
        within: which columns are within 0 and 1.
        right: for label offsets -1, 0 and 1, whether each image is right; None without labels.
        size: 0 to 1, whether the first layer's outputs are of the size that it was trained on.
        classes: the number of classes.
    """

    likely: Floats
    unsure: Floats
    within: NDArray[np.bool_]
    right: Floats | None
    size: float
    classes: int


class _Trials:
    """The trials of the usual ways on some images."""

    def __init__(self, model: ModelProto, data: Data, fit: Fit, seed: int) -> None:
        self.fit, self.rng = fit, np.random.default_rng(seed)
        proto = normalize(model)
        self.layer = _first_layer(proto)
        self.outputs = [output.name for output in proto.graph.output]
        tensors = list(dict.fromkeys([*self.outputs, *([] if self.layer is None else [self.layer.tensor])]))
        self.run = Runner(extract(proto, tensors), ("CPUExecutionProvider",), None)
        macs = max(model_cost(proto, concretize(proto)).macs, 1)
        count = int(np.clip(_MACS / macs, *_IMAGES))
        everything = data if data.source.sequential else replace(data, chosen=None)  # whatever the limit is
        order = np.random.default_rng(seed).permutation(len(everything))
        self.whole, self.data = data, everything.subset(np.sort(order[:count]))
        self.found: dict[Recipe, _Evidence] = {}

    def best(self, progress: Progress) -> tuple[Data, Preprocessing | None]:
        """Try the ways, those in BGR order only for the best of the others, and return the best."""
        given, channels = self.fit.recipe, 1 if self.fit.recipe.channels == "GRAY" else 3
        known = replace(given, scale=None, mean=None, std=None)
        recipes = _different([usual.ordered(known) for usual in USUAL if channels in usual.channels])
        orders = given.channels == "RGB" and self.whole.recipe.channels is None  # else the user gave the order
        total = len(recipes) + (min(_TURNED, len(recipes)) if orders else 0)

        def attempt(recipe: Recipe) -> None:
            progress("try ways of preprocessing", len(self.found), total)
            self.found[recipe] = self._evidence(recipe)

        for recipe in recipes:
            attempt(recipe)
        for recipe in self._ranked()[:_TURNED] if orders else ():
            attempt(_turned(recipe))
        alike = self._alike(given)
        fit = replace(self.fit, recipe=alike[0], note=None, guessed=False)
        notes = tuple(note for note in self.whole.notes if note != self.fit.note)
        said = [replace(self.whole.recipe, **{k: getattr(r, k) for k in _KEYS}) for r in alike]
        found = Preprocessing(self.fit.spec.name, tuple(said), len(self.found), len(self.data))
        return replace(self.whole, fits=(fit,), recipe=said[0], notes=(*notes, str(found))), found

    def _evidence(self, recipe: Recipe) -> _Evidence:
        data = replace(self.data, fits=(replace(self.fit, recipe=recipe),))
        outputs: list[Mapping[str, Any]] = []
        labels: list[Any] = []
        for batch in data.batches(_IMAGES[1]):
            outputs.append(self.run(batch))
            labels.append(batch.labels)
        joined = {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
        size = 1.0 if self.layer is None else self.layer.size(joined[self.layer.tensor])
        own = {name: joined[name] for name in self.outputs if name in joined}
        output = class_output(own, None, None)
        classes, right = None if output is None else classes_of(own[output], None), None
        if classes is not None and classes.scores is not None:
            known = probabilities(classes.scores)
            likely, count = known.mean(axis=2), known.shape[1]
            predicted = likely.argmax(axis=1)
            unsure = _entropy(known).sum(axis=1).mean(axis=1)
            within = np.ones(count, bool)
            if all(own_labels is not None and own_labels.ndim == 1 for own_labels in labels):
                given = np.concatenate(labels)
                if given.dtype.kind in "iu":
                    right = np.stack([predicted == given + offset for offset in (-1, 0, 1)]).astype(np.float64)
            return _Evidence(likely, unsure, within, right, size, count)
        parts = [_columns(value) for value in floats(own).values() if value.ndim > 1]
        if not parts:
            n = len(self.data)
            return _Evidence(np.zeros((n, 0)), np.zeros((n, 0)), np.zeros(0, bool), None, size, 0)
        likely, unsure, within = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        return _Evidence(likely, unsure, within, None, size, 0)

    def _scores(self, weights: Floats) -> dict[Recipe, Floats]:
        """Return the score of each way, for weights of images [images, draws]."""
        found, shares = self.found, weights / weights.sum(axis=0)
        within = np.all([e.within for e in found.values()], axis=0)
        right = {recipe: e.right for recipe, e in found.items() if e.right is not None}
        if self.labeled:
            rates = {recipe: np.max(own @ shares, axis=0) for recipe, own in right.items()}
            return self._joined(rates, _LABELED)
        told = {r: _information(e, within, shares) for r, e in found.items()}
        return self._joined(told, _KNOWN if self.layer is not None and self.layer.mean is not None else _SURENESS)

    @property
    def labeled(self) -> bool:
        """Whether there are labels that one of the ways makes sense of."""
        found = list(self.found.values())
        rates = [float(e.right.mean(axis=1).max()) for e in found if e.right is not None]
        return len(rates) == len(found) and max(rates) > min(0.9, _CHANCE / max(1, found[0].classes))

    def _joined(self, sure: Mapping[Recipe, Floats], weight: float) -> dict[Recipe, Floats]:
        most = np.maximum(np.max(list(sure.values()), axis=0), _TINY)
        return {r: weight * sure[r] / most + (1 - weight) * self.found[r].size for r in self.found}

    def _ranked(self) -> list[Recipe]:
        scores = self._scores(np.ones((len(self.data), 1)))
        return sorted(scores, key=lambda recipe: -float(scores[recipe][0]))

    def _alike(self, guess: Recipe) -> list[Recipe]:
        """Return the ways that may be the best, in order. Without labels, the guess comes first if it is among them."""
        ranked = self._ranked()
        whole = self._scores(np.ones((len(self.data), 1)))
        drawn = self._scores(self.rng.poisson(1.0, (len(self.data), _DRAWS)).astype(np.float64) + _TINY)
        best = ranked[0]
        alike = [
            recipe
            for recipe in ranked
            if float((drawn[recipe] >= drawn[best]).mean()) > _DOUBT
            or float(whole[best][0] - whole[recipe][0]) < _CLOSE
        ]
        return alike if self.labeled else sorted(alike, key=lambda recipe: recipe != guess)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The first layer: the tensor that tells the size of its outputs, and the statistics of training if known."""

    tensor: str
    axis: int
    mean: Floats | None = None
    variance: Floats | None = None

    def size(self, value: NDArray[Any]) -> float:
        """Return from 0 to 1 whether values are of the size that the layer was trained on."""
        moved = np.moveaxis(value.astype(np.float64), self.axis, 0).reshape(value.shape[self.axis], -1)
        mean, variance = moved.mean(axis=1), moved.var(axis=1) + _TINY
        if self.mean is None or self.variance is None:
            off = abs(float(np.log10(np.sqrt(np.median(variance)))))
            return float(10.0 ** -max(0.0, off - 1))
        trained = self.variance + _TINY
        # The divergence of two normal distributions, of the median channel.
        divergence = (np.log(trained / variance) + (variance + (mean - self.mean) ** 2) / trained - 1) / 2
        return float(np.exp(-np.median(divergence)))


def _first_layer(proto: ModelProto) -> _Layer | None:
    """Return the first convolution or product, and the statistics of a BatchNormalization right behind it."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    node = next((n for n in proto.graph.node if n.op_type in _LAYERS), None)
    if node is None:
        return None
    axis = 1 if "Conv" in node.op_type else -1
    behind: Sequence[NodeProto] = [n for n in proto.graph.node if node.output[0] in n.input]
    if (
        len(behind) == 1
        and behind[0].op_type == "BatchNormalization"
        and all(i in weights for i in behind[0].input[3:5])
    ):
        mean, variance = (to_array(weights[name]).astype(np.float64) for name in behind[0].input[3:5])
        if mean.ndim == 1:  # version 7 may have statistics of every position
            return _Layer(node.output[0], 1, mean, variance)
    return _Layer(node.output[0], axis)


def _columns(output: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Read an output as scores of positions: the shortest axis has the kinds of scores, each a decision of its own."""
    axis = int(np.argmin(output.shape[1:])) + 1 if output.ndim > 2 else 1
    values = np.moveaxis(output, axis, -1).reshape(len(output), -1, output.shape[axis]).astype(np.float64)
    within = np.asarray((np.isfinite(values) & (values >= 0) & (values <= 1)).all(axis=(0, 1)))
    clipped = np.where(within, values, 0.0)
    unsure = (_entropy(clipped) + _entropy(1 - clipped)).mean(axis=1)
    return clipped.mean(axis=1), unsure, within


def _information(found: _Evidence, within: NDArray[np.bool_], shares: Floats) -> Floats:
    """Return the mutual information of images and predictions, in nats, for shares of images [images, draws]."""
    mean = shares.T @ found.likely[:, within]
    if found.classes:
        return np.asarray(np.maximum(_entropy(mean).sum(axis=1) - found.unsure @ shares, 0.0))
    spread = (_entropy(mean) + _entropy(1 - mean)).sum(axis=1)
    return np.asarray(np.maximum(spread - (shares.T @ found.unsure[:, within]).sum(axis=1), 0.0))


def _entropy(p: Floats) -> Floats:
    return np.asarray(-p * np.log(np.maximum(p, _TINY)))


def _different(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes without those that give nearly the values of an earlier one."""
    kept: list[Recipe] = []
    for recipe in recipes:
        if all(_apart(recipe, other) > _ALIKE for other in kept):
            kept.append(recipe)
    return kept


def _apart(one: Recipe, other: Recipe) -> float:
    """Return the largest difference between the values of two recipes, relative to their range."""
    low, high = (np.array([_value(r, pixel) for r in (one, other)]) for pixel in (0.0, 255.0))
    return float(np.max(np.abs([low[0] - low[1], high[0] - high[1]])) / np.max(np.abs(high - low)))


def _value(recipe: Recipe, pixel: float) -> Floats:
    mean, std = (np.array(x or default) for x, default in ((recipe.mean, (0.0,)), (recipe.std, (1.0,))))
    return np.asarray(np.broadcast_to((pixel * (recipe.scale or 1.0) - mean) / std, (3,)), np.float64)


def _turned(recipe: Recipe) -> Recipe:
    """Return a recipe in RGB order with the channels in BGR order."""
    mean, std = (numbers and numbers[::-1] for numbers in (recipe.mean, recipe.std))
    return replace(recipe, channels="BGR", mean=mean, std=std)
