"""Inputs where there are none: seeded noise with the statistics that can be known.

Pictures of nature have spectra that fall with frequency, and colours that go together; networks have seen little else,
and white noise excites them as no picture does. So images are noise whose amplitudes fall as 1 / f^1.5, mostly grey,
of various brightness and contrast. Other inputs are standard normal, or zeros and ones where they are whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.data.batch import Array
from onnxprune.data.guess import layout_of
from onnxprune.data.ports import InputSpec

_SAMPLES = 512
_BYTES = 2**28  # that all of them may take
_OPEN = 64  # the size of an axis that the model leaves open
# Of images: how fast amplitudes fall with frequency, how much of the colour is its channel's own, and the mean and
# deviation of brightness and the range of contrast, in grey levels.
_FALL, _OWN = 1.5, 0.3
_BRIGHTNESS, _CONTRAST = (127.5, 30.0), (30.0, 80.0)


def noise_arrays(inputs: Sequence[InputSpec], limit: int | None, seed: int) -> dict[str, Array]:
    """Draw samples for each of a model's inputs.

    Args:
        inputs: the inputs.
        limit: how many samples, 512 by default; fewer where they would take much memory.
        seed: seed of the draw.

    Returns:
        Arrays by name: images as bytes (to be preprocessed), others as the input takes them.
    """
    rng = np.random.default_rng(seed)
    sizes = [(1, _OPEN) if spec.shape is None else tuple(n or _OPEN for n in spec.shape) for spec in inputs]
    firsts = {spec.shape[0] for spec in inputs if spec.shape}
    whole = len(firsts) > 1 and None not in firsts  # no axis counts samples: each is all that the model takes at once
    shapes = [shape if whole else shape[1:] for shape in sizes]
    count = max(1, min(limit or _SAMPLES, _BYTES // max(prod(shape) for shape in shapes)))
    return {
        spec.name: _draw(spec, (count, *shape) if whole or spec.shape != () else (), rng)
        for spec, shape in zip(inputs, shapes, strict=True)
    }


def _draw(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    layout = layout_of(spec.shape)
    if layout is not None and len(shape) == 4:
        return _images(shape if layout == "NHWC" else (shape[0], *shape[2:], shape[1]), rng)
    if spec.dtype.kind in "biu":
        return np.asarray(rng.integers(0, 2, shape), spec.dtype)
    return np.asarray(rng.standard_normal(shape), spec.dtype)


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw images [count, height, width, channels] from 0 to 255, one by one to save memory."""
    _, height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    images = np.empty(shape, dtype=np.uint8)
    for image in images:
        white = rng.standard_normal((1, height, width)) + _OWN * rng.standard_normal((channels, height, width))
        values = np.fft.irfft2(np.fft.rfft2(white) / frequency**_FALL, s=(height, width))
        values = (values - values.mean()) / max(float(values.std()), 1e-12)
        values = rng.normal(*_BRIGHTNESS) + rng.uniform(*_CONTRAST) * values
        image[:] = np.clip(values, 0, 255).transpose(1, 2, 0)
    return images
