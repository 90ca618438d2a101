"""DenseNet (Huang et al., 2017)."""

from __future__ import annotations

from onnx import ModelProto

from models.builders.layers import Feature, Network

_BLOCKS = (6, 12, 24, 16)
_GROWTH = 32


def densenet121(*, size: int = 224, classes: int = 1000, seed: int = 0) -> ModelProto:
    """Build DenseNet-121: input [N, 3, size, size], output logits [N, classes]."""
    net = Network("densenet121")
    x = net.conv(net.input("input", 3, size), 2 * _GROWTH, 7, stride=2)
    x = net.max_pool(net.relu(net.batch_norm(x)), 3, stride=2)
    for block, layers in enumerate(_BLOCKS):
        if block:
            x = net.average_pool(_bn_relu_conv(net, x, x.channels // 2, 1), 2)
        for _ in range(layers):
            y = _bn_relu_conv(net, x, 4 * _GROWTH, 1)
            x = net.concat(x, _bn_relu_conv(net, y, _GROWTH, 3))
    x = net.relu(net.batch_norm(x))
    net.output("logits", net.classifier(x, classes))
    return net.build(seed)


def _bn_relu_conv(net: Network, x: Feature, channels: int, kernel: int) -> Feature:
    return net.conv(net.relu(net.batch_norm(x)), channels, kernel)
