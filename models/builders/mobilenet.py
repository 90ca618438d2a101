"""MobileNetV2 (Sandler et al., 2018)."""

from __future__ import annotations

from onnx import ModelProto

from models.builders.layers import Feature, Network

# Expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(*, size: int = 224, classes: int = 1000, seed: int = 0) -> ModelProto:
    """Build MobileNetV2 of width 1: input [N, 3, size, size], output logits [N, classes]."""
    net = Network("mobilenet_v2")
    x = _conv_bn_relu6(net, net.input("input", 3, size), 32, 3, stride=2)
    for expansion, channels, blocks, stride in _STAGES:
        for block in range(blocks):
            x = _inverted_residual(net, x, channels, expansion, stride if block == 0 else 1)
    x = _conv_bn_relu6(net, x, 1280, 1)
    net.output("logits", net.classifier(x, classes))
    return net.build(seed)


def _inverted_residual(net: Network, x: Feature, channels: int, expansion: int, stride: int) -> Feature:
    hidden = expansion * x.channels
    y = _conv_bn_relu6(net, x, hidden, 1) if expansion > 1 else x
    y = _conv_bn_relu6(net, y, hidden, 3, stride=stride, groups=hidden)
    y = net.batch_norm(net.conv(y, channels, 1))
    return net.add(x, y) if stride == 1 and channels == x.channels else y


def _conv_bn_relu6(net: Network, x: Feature, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Feature:
    return net.relu6(net.batch_norm(net.conv(x, channels, kernel, stride, groups)))
