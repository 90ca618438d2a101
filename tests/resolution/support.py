"""Networks that see the same in smaller images, or something else, and images for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.toolbox import Net

Batches = Callable[[], Iterator[dict[str, NDArray[Any]]]]


def classifier(*, doubled: bool = False, size: int = 32) -> onnx.ModelProto:
    """Return a network of averaging kernels, which see the same in a smaller image.

    Args:
        doubled: whether every channel is there twice, so that half of them can leave for nothing; kernels are then
            arbitrary, and see something else in a smaller image.
        size: height and width of the image.
    """
    net = Net()

    def conv(x: str, out: int, name: str) -> str:
        fan_in = net.shape(x)[1]
        mix = net.rng.standard_normal((out, fan_in, 1, 1)) / np.sqrt(fan_in)
        shape = net.rng.standard_normal((3, 3)) if doubled else np.full((3, 3), 1 / 9)
        kernel = (mix * shape).astype(np.float32)
        bias = net.rng.uniform(-0.2, 0.2, out).astype(np.float32)
        if doubled:
            kernel[1::2], bias[1::2] = kernel[::2], bias[::2]
        attributes = {"pads": [1] * 4, "strides": [2, 2], "name": name}
        return net.op("Relu", net.op("Conv", x, net.const(kernel, f"{name}_w"), net.const(bias), **attributes))

    x = conv(conv(net.input((4, 3, size, size), "image"), 16, "first"), 16, "second")
    net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 6, name="head"))
    return net.model()


def smooth(count: int = 8, size: int = 32) -> Batches:
    """Return batches of 4 images each, in which brightness changes slowly."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(-3, 3, (count, 4, 3, 3)) * [1, 1, np.pi]
    levels = rng.standard_normal((count, 4, 3, 1, 1))
    images = np.cos(waves[..., :1, None] * y + waves[..., 1:2, None] * x + waves[..., 2:, None]) + levels
    return lambda: ({"image": batch.astype(np.float32)} for batch in images)


def rough(count: int = 8, spread: float = 0.0) -> Batches:
    """Return batches of 4 images each, in which every pixel has a brightness of its own, and every image a spread."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((count, 4, 3, 32, 32)) * np.exp(spread * rng.standard_normal((count, 4, 3, 1, 1)))
    images = images.astype(np.float32)
    return lambda: ({"image": batch} for batch in images)
