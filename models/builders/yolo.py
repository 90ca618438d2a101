"""A detector like YOLOv8n: C2f blocks, SPPF, a neck with a top-down and a bottom-up path."""

from __future__ import annotations

from onnx import ModelProto

from models.builders.layers import Feature, Network

_BOX_CHANNELS = 64  # 16 bins for each of a box's four sides


def yolo_like(*, size: int = 640, classes: int = 80, seed: int = 0) -> ModelProto:
    """Build the detector: input [N, 3, size, size], `size` a multiple of 32.

    Outputs `small`, `medium`, `large`: [N, 64 + classes, size / s, size / s] for s = 8, 16, 32.
    """
    net = Network("yolo_like")
    x = _conv(net, net.input("images", 3, size), 16, 3, stride=2)
    levels = []
    for channels, blocks in ((32, 1), (64, 2), (128, 2), (256, 1)):
        x = _c2f(net, _conv(net, x, channels, 3, stride=2), channels, blocks, shortcut=True)
        levels.append(x)
    _, fine, middle, _ = levels
    coarse = _sppf(net, x)

    middle = _c2f(net, net.concat(net.upsample(coarse), middle), 128)
    small = _c2f(net, net.concat(net.upsample(middle), fine), 64)
    medium = _c2f(net, net.concat(_conv(net, small, 64, 3, stride=2), middle), 128)
    large = _c2f(net, net.concat(_conv(net, medium, 128, 3, stride=2), coarse), 256)
    for name, level in (("small", small), ("medium", medium), ("large", large)):
        box = _head(net, level, 64, _BOX_CHANNELS)
        score = _head(net, level, 80, classes)
        net.output(name, net.concat(box, score))
    return net.build(seed)


def _conv(net: Network, x: Feature, channels: int, kernel: int, stride: int = 1) -> Feature:
    return net.silu(net.batch_norm(net.conv(x, channels, kernel, stride)))


def _c2f(net: Network, x: Feature, channels: int, blocks: int = 1, *, shortcut: bool = False) -> Feature:
    """Split the channels, pass one half through a chain of blocks and join all intermediate results."""
    first, last = net.halves(_conv(net, x, channels, 1))
    parts = [first, last]
    for _ in range(blocks):
        y = _conv(net, _conv(net, last, last.channels, 3), last.channels, 3)
        last = net.add(last, y) if shortcut else y
        parts.append(last)
    return _conv(net, net.concat(*parts), channels, 1)


def _sppf(net: Network, x: Feature) -> Feature:
    """Join three successive poolings: a pyramid of increasing windows."""
    parts = [_conv(net, x, x.channels // 2, 1)]
    for _ in range(3):
        parts.append(net.max_pool(parts[-1], 5, stride=1))
    return _conv(net, net.concat(*parts), x.channels, 1)


def _head(net: Network, x: Feature, width: int, channels: int) -> Feature:
    y = _conv(net, _conv(net, x, width, 3), width, 3)
    return net.conv(y, channels, 1, bias=True)
