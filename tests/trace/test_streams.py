"""Which groups of channels may change their basis: those that only linear operators touch, all channels alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import find_streams
from tests.toolbox import Net, analyze

WIDTH = 6

Middle = Callable[[Net, str], str]


def with_middle(middle: Middle) -> tuple[ChannelGraph, str]:
    """Return a network whose stream of channels passes through some operators, and the node that makes it."""
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), WIDTH, 3, name="make")
    y = middle(net, x)
    net.output(net.op("Relu", net.conv(y, 4, name="read") if len(net.shape(y)) == 4 else net.linear(y, 4)))
    return analyze(net.model()), "make"


def reason(graph: ChannelGraph, node: str) -> str | None:
    """Return why the channels that a node makes are fixed to their basis, None if they aren't."""
    streams, fixed = find_streams(graph)
    group = next(g for g in graph.groups if node in g.producers)
    assert (group.index in streams) != (group.index in fixed)
    return None if group.index in streams else str(fixed[group.index])


LINEAR: dict[str, Middle] = {
    "directly": lambda net, x: x,
    "residual": lambda net, x: net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 5)), WIDTH)),
    "difference": lambda net, x: net.op("Sub", x, net.conv(x, WIDTH, 3)),
    "bias": lambda net, x: net.op("Add", x, net.weight(1, WIDTH, 1, 1)),
    "scaled": lambda net, x: net.op("Mul", x, net.const(0.5)),
    "by position": lambda net, x: net.op("Mul", x, net.weight(1, 1, 8, 8)),
    "gated by position": lambda net, x: net.op("Mul", x, net.op("Sigmoid", net.conv(x, 1))),
    "pooled": lambda net, x: net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "global": lambda net, x: net.op("GlobalAveragePool", x),
    "mean": lambda net, x: net.op("Add", x, net.reduce("ReduceMean", x, [2, 3])),
    "tokens": lambda net, x: net.op("Transpose", net.reshape(x, (1, WIDTH, 64)), perm=[0, 2, 1]),
    "upsampled": lambda net, x: net.upsample(x, 2),
    "rows joined": lambda net, x: net.op("Concat", x, net.op("Neg", x), axis=2),
    "scale": lambda net, x: net.op("Mul", x, net.weight(1, WIDTH, 1, 1)),
    "without the mean": lambda net, x: net.op("Sub", x, net.reduce("ReduceMean", x, [1])),
    "of some shape": lambda net, x: net.op(
        "Mul", x, net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(np.array(0))), to=1)
    ),
    "channels first": lambda net, x: net.op("Concat", *net.split(x, [3, 5], 3), axis=2 + 1),
}

FIXED: dict[str, tuple[Middle, str]] = {
    "activation": (lambda net, x: net.op("Relu", x), "Relu"),
    "depthwise": (lambda net, x: net.conv(x, WIDTH, 3, group=WIDTH), "Conv"),
    "scale before a sum": (
        lambda net, x: net.op("Add", net.op("Mul", x, net.weight(1, WIDTH, 1, 1)), x),
        "more than layers read that",
    ),
    "gate": (lambda net, x: net.op("Mul", x, net.conv(x, WIDTH)), "multiplies channel by channel"),
    "divisor": (lambda net, x: net.op("Div", net.const(1.0), x), "multiplies channel by channel"),
    "offset": (lambda net, x: net.op("Add", x, net.const(0.5)), "adds something"),
    "mean over channels": (
        lambda net, x: net.op("Mul", x, net.reduce("ReduceMean", x, [1])),
        "taken over these channels",
    ),
    "maximum": (lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2]), "MaxPool"),
    "batch norm": (
        lambda net, x: net.op("BatchNormalization", x, *(net.between(0.5, 1.5, WIDTH) for _ in range(4))),
        "BatchNormalization",
    ),
    "flattened": (lambda net, x: net.op("Flatten", x), "several positions"),
    "crop value": (
        lambda net, x: net.op(
            "Resize",
            x,
            net.const(np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32)),
            "",
            net.const(np.array([1, WIDTH, 8, 8], np.int64)),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=1.0,
        ),
        "Resize",
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_stream_of_linear_operators_is_free(case: str) -> None:
    graph, node = with_middle(LINEAR[case])
    assert reason(graph, node) is None


@pytest.mark.parametrize("case", FIXED)
def test_whatever_acts_on_single_channels_fixes_them(case: str) -> None:
    middle, words = FIXED[case]
    graph, node = with_middle(middle)
    found = reason(graph, node)
    assert found is not None
    assert words in found


def test_an_output_of_the_model_has_no_stream() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), WIDTH)
    net.output(x)
    net.output(net.conv(x, 4))
    assert not find_streams(analyze(net.model()))[0]


def test_a_part_that_is_processed_otherwise_fixes_the_whole() -> None:
    """Both halves reach the same reader, but through operators that act on their positions differently."""
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), WIDTH, name="make")
    first, second = net.split(x, [WIDTH // 2] * 2, 1)
    first = net.op("AveragePool", first, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    net.output(net.op("Relu", net.conv(net.op("Concat", first, second, axis=1), 4)))
    graph = analyze(net.model())
    for group in graph.groups:
        if "make" in group.producers and len(group.units) == WIDTH:
            found = reason(graph, "make")
            assert found is not None
            assert "divides" in found


def test_weights_of_other_types_stay() -> None:
    net = Net()
    x = net.input((1, 3, 8, 8), dtype=10)
    weight = net.const(net.rng.standard_normal((WIDTH, 3, 1, 1)).astype(np.float16))
    read = net.const(net.rng.standard_normal((4, WIDTH, 1, 1)).astype(np.float16))
    net.output(net.op("Relu", net.op("Conv", net.op("Conv", x, weight, name="make"), read)))
    found = reason(analyze(net.model()), "make")
    assert found is not None
    assert "float32" in found


def test_channels_of_a_language_model_flow_from_a_table() -> None:
    net = Net()
    x = net.op("Gather", net.weight(20, 8), net.input((1, 5), dtype=7), name="table")
    x = net.op("Add", x, net.weight(1, 5, 8))
    for _ in range(2):
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 12)), 8))
    net.output(net.op("Softmax", net.linear(x, 4)))
    graph = analyze(net.model())
    streams, _ = find_streams(graph)
    (stream,) = streams.values()
    assert len(stream.slots) == 7
