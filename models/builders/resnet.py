"""ResNet (He et al., 2015), version 1.5: the stride of a bottleneck is in its 3x3 convolution."""

from __future__ import annotations

from onnx import ModelProto

from models.builders.layers import Feature, Network

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(depth: int = 50, *, size: int = 224, classes: int = 1000, seed: int = 0) -> ModelProto:
    """Build ResNet-18, 34, 50 or 101: input [N, 3, size, size], output logits [N, classes]."""
    net = Network(f"resnet{depth}")
    x = net.input("input", 3, size)
    x = net.relu(net.batch_norm(net.conv(x, 64, 7, stride=2)))
    x = net.max_pool(x, 3, stride=2)
    for stage, blocks in enumerate(_STAGES[depth]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(net, x, 64 << stage, stride, bottleneck=depth >= 50)
    net.output("logits", net.classifier(x, classes))
    return net.build(seed)


def _block(net: Network, x: Feature, width: int, stride: int, *, bottleneck: bool) -> Feature:
    layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
    if not bottleneck:
        layers = [(width, 3, stride), (width, 3, 1)]
    y = x
    for index, (channels, kernel, step) in enumerate(layers):
        y = net.relu(y) if index else y
        y = net.batch_norm(net.conv(y, channels, kernel, step))
    if stride > 1 or x.channels != y.channels:
        x = net.batch_norm(net.conv(x, y.channels, 1, stride))
    return net.relu(net.add(y, x))
