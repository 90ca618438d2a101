"""Data without files: synthetic inputs from a seed, and the digits that scikit-learn brings.

Networks trained on photographs respond to the edges of objects that occlude each other; white noise has none and leads
to unrepresentative activations. Synthetic images are therefore "dead leaves": overlapping shapes of all sizes and
colors, over a texture whose amplitudes fall with frequency as in natural images (Baradad et al., "Learning to see by
looking at noise", NeurIPS 2021). Other inputs are drawn as `onnxprune.shapes.generated` says, in the first way that the
model runs on; parameters stay what they were there. All have the sizes that the model is traced at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data.batch import Array
from onnxprune.data.fit import layout_of
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import DataError, UsageError
from onnxprune.normalize import normalize
from onnxprune.shapes import concretize
from onnxprune.shapes.generated import draw, lengths_of, roles_of, runnable_draw
from onnxprune.shapes.inputs import declared_inputs
from onnxprune.shapes.known import Shape
from onnxprune.shapes.result import fits

Floats = NDArray[np.float64]
Sizes = Mapping[str, Sequence[int] | int]

_SAMPLES = 512
_BYTES = 2**28  # of all samples
# Images: mean and deviation of brightness, and range of contrast, in gray levels.
_BRIGHTNESS, _CONTRAST = (127.5, 30.0), (30.0, 80.0)
# Leaves: their number, radii as fractions of the image's side (with a density of r^-3), smallest aspect ratio, and
# weight of the color that differs between channels.
_LEAVES, _RADII, _FLAT, _COLOR = 60, (1 / 16, 2 / 3), 0.3, 0.5
# Texture: its weight relative to the leaves, the exponent of its spectrum, and the weight of independent channels.
_STRENGTH, _FALL, _OWN = 0.3, 1.5, 0.3


def noise_arrays(
    model: ModelProto, inputs: Sequence[InputSpec], sizes: Sizes, limit: int | None, seed: int
) -> dict[str, Array]:
    """Generate samples for each model input.

    Samples have an axis of their own, the first one, where the model takes several at once. Otherwise each is all that
    the model takes at once, with the inputs' own axes.

    Args:
        model: the model.
        inputs: its inputs.
        sizes: shapes of inputs or sizes of symbolic dimensions; others are those at which the model is traced.
        limit: number of samples, 512 by default; fewer if they are large.
        seed: random seed.

    Returns:
        Arrays by input: images as bytes, still to be preprocessed; others in the input's type.

    Raises:
        ModelError: the sizes of inputs can't be found (OP124, OP125), or the model runs on no inputs (OP122).
        UsageError: a size doesn't fit the model (OP603).
    """
    rng = np.random.default_rng(seed)
    known = _sizes(model, inputs, sizes)
    ran, way = runnable_draw(model, known, seed)
    roles = roles_of(model.graph, known)
    lengths = lengths_of(known, roles)
    whole = not _stack(model, known)
    shapes = {name: shape if whole else shape[1:] for name, shape in known.items()}
    count = max(1, min(limit or _SAMPLES, _BYTES // max(prod(shapes[spec.name]) for spec in inputs)))
    arrays: dict[str, Array] = {}
    for spec in inputs:
        shape = (count, *shapes[spec.name]) if whole or known[spec.name] else ()
        layout = layout_of(spec.shape)
        if roles[spec.name].kind == "parameter":
            arrays[spec.name] = np.broadcast_to(ran[spec.name], shape)
        elif layout is not None and not whole and roles[spec.name].kind in ("free", "flag"):
            arrays[spec.name] = _images(shape if layout == "NHWC" else (count, *shape[2:], shape[1]), rng)
        else:
            arrays[spec.name] = draw(roles[spec.name], shape, spec.dtype, rng, attempt=way, lengths=lengths)
    return arrays


def _sizes(model: ModelProto, inputs: Sequence[InputSpec], given: Sizes) -> dict[str, Shape]:
    """Return the shapes of all inputs, those of a single sample."""
    if all(not isinstance(given.get(spec.name, 1), int) for spec in inputs):  # as a trace found them
        return {spec.name: tuple(given[spec.name]) for spec in inputs}  # type: ignore[arg-type]
    known = concretize(normalize(model), given).inputs
    return {spec.name: known[spec.name] for spec in inputs}


def _stack(model: ModelProto, known: Mapping[str, Shape]) -> bool:
    """Whether samples can be stacked along the first axis of all inputs that have axes."""
    declared = declared_inputs(model.graph)
    firsts = {(dims or ("?",))[0] for name, dims in declared.items() if known.get(name)}
    if len(firsts) == 1:
        return True
    if any(isinstance(first, int) for first in firsts):
        return False
    return fits(model, {name: (2, *shape[1:]) for name, shape in known.items() if shape})


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return images [count, height, width, channels], 0 to 255, generated one by one to save memory."""
    images = np.empty(shape, dtype=np.uint8)
    for image in images:
        values = _leaves(image.shape, rng) + _STRENGTH * _texture(image.shape, rng)
        values = (values - values.mean()) / max(float(values.std()), 1e-12)
        image[:] = np.clip(rng.normal(*_BRIGHTNESS) + rng.uniform(*_CONTRAST) * values, 0, 255)
    return images


def _leaves(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return an image [height, width, channels] of ellipses and rectangles, later ones in front."""
    height, width, channels = shape
    image = np.zeros(shape)
    smallest, largest = (share * max(height, width) for share in _RADII)
    for _ in range(_LEAVES):
        radius = 1 / np.sqrt(rng.uniform(1 / largest**2, 1 / smallest**2))  # of density r^-3
        y, x, turn, flat = rng.uniform((0, 0, 0, _FLAT), (height, width, np.pi, 1))
        reach = 1.5 * radius  # of a rectangle's corners
        rows = slice(max(int(y - reach), 0), int(y + reach) + 2)
        columns = slice(max(int(x - reach), 0), int(x + reach) + 2)
        down, right = np.ogrid[:height, :width]
        down, right = down[rows] - y, right[:, columns] - x
        along, across = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
        measure = np.hypot if rng.random() < 0.5 else np.fmax
        inside = measure(np.abs(along), np.abs(across) / flat) < radius
        image[rows, columns][inside] = rng.standard_normal() + _COLOR * rng.standard_normal(channels)
    return image


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return noise [height, width, channels] of variance 1 whose amplitudes fall with frequency."""
    height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    white = rng.standard_normal((1, height, width)) + _OWN * rng.standard_normal((channels, height, width))
    values = np.fft.irfft2(np.fft.rfft2(white) / frequency**_FALL, s=(height, width))
    values = (values - values.mean()) / max(float(values.std()), 1e-12)
    return np.asarray(values.transpose(1, 2, 0))


PARTS = ("digits", "digits:train", "digits:test")
"""All digits, the three quarters for training, and the remaining quarter."""


def digits_arrays(part: str) -> dict[str, Array]:
    """Return the digits as images [n, 1, 8, 8], -1 to 1, and their labels.

    The test quarter is stratified, and the one that this project's own models were tested on.

    Raises:
        DataError: the part is unknown (OP701).
        UsageError: scikit-learn isn't installed (OP605).
    """
    if part not in PARTS:
        raise DataError("OP701", f"there is no part {part!r} of the digits", hint=f"parts: {', '.join(PARTS)}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        cause = "the digits come from scikit-learn, which isn't installed"
        raise UsageError("OP605", cause, hint="pip install scikit-learn") from error
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    labels = digits.target.astype(np.int64)
    if part != "digits":
        held = part == "digits:test"
        parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
        images, labels = parts[held], parts[2 + held]
    return {"images": images, "labels": labels}
