"""A network small enough to count by hand: a stem, two branches that are added, a head with a shift.

stem    16x3x3x3 + 16    432 + 16 parameters
left     8x16x1x1 + 8    128 +  8
right    8x16x1x1 + 8    128 +  8
head     8x10             80
shift   10                10
"""

from __future__ import annotations

from onnx import ModelProto

from tests.toolbox import Net

PARAMS = 448 + 136 + 136 + 80 + 10
MACS = 64 * (16 * 27 + 8 * 16 + 8 * 16) + 80


def network() -> ModelProto:
    net = Net()
    image = net.input((1, 3, 8, 8), "image", symbols={0: "N"})
    stem = net.op("Relu", net.conv(image, 16, 3, name="stem"), name="relu")
    left, right = (net.conv(stem, 8, name=name) for name in ("left", "right"))
    joined = net.op("Add", left, right, name="join")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", joined, name="pool"), name="flat")
    head = net.linear(pooled, 10, name="head")
    logits = net.op("Add", head, net.weight(10, name="shift_b"), name="shift")
    net.output(logits, symbols={0: "N"})
    return net.model()
