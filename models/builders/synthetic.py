"""A graph of any length, to measure how the cost of tracing grows."""

from __future__ import annotations

from onnx import ModelProto

from models.builders.layers import Network

_BLOCK_NODES = 7


def synthetic_chain(nodes: int = 10_000, *, channels: int = 8, size: int = 16, seed: int = 0) -> ModelProto:
    """Build a chain of narrow residual blocks, of about `nodes` nodes in total.

    Input [N, 3, size, size], output [N, 10]. The channels of all block outputs are coupled.
    """
    net = Network(f"synthetic_{nodes}")
    x = net.relu(net.batch_norm(net.conv(net.input("input", 3, size), channels, 3)))
    for _ in range(nodes // _BLOCK_NODES):
        y = net.relu(net.batch_norm(net.conv(x, channels, 3)))
        y = net.batch_norm(net.conv(y, channels, 3))
        x = net.relu(net.add(x, y))
    net.output("logits", net.classifier(x, 10))
    return net.build(seed)
