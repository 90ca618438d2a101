"""A small network with every kind of slot that criteria meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.normalize import normalize
from onnxprune.trace import ChannelGraph, trace

Arrays = dict[str, NDArray[Any]]

EPSILON = 1e-3


def weights(seed: int = 0) -> Arrays:
    """Random weights of conv1 (12 channels), bn1, conv2 (10 channels), fc (16 positions of each)."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv1.w": (12, 3, 3, 3),
        "bn1.scale": (12,),
        "bn1.bias": (12,),
        "bn1.mean": (12,),
        "bn1.var": (12,),
        "conv2.w": (10, 12, 3, 3),
        "conv2.b": (10,),
        "fc.w": (7, 160),
        "fc.b": (7,),
    }
    arrays: Arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["bn1.var"] = rng.uniform(0.5, 2, size=12).astype(np.float32)
    return arrays


def nodes(*, bn: bool = True) -> list[onnx.NodeProto]:
    norm = helper.make_node(
        "BatchNormalization",
        ["h", "bn1.scale", "bn1.bias", "bn1.mean", "bn1.var"],
        ["n"],
        "bn1",
        epsilon=EPSILON,
    )
    return [
        helper.make_node("Conv", ["x", "conv1.w"], ["h"], "conv1", pads=[1] * 4),
        *([norm] if bn else []),
        helper.make_node("Relu", ["n" if bn else "h"], ["r"], "relu1"),
        helper.make_node("Conv", ["r", "conv2.w", "conv2.b"], ["c"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["s"], "relu2"),
        helper.make_node("Flatten", ["s"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc", transB=1),
    ]


def build(
    arrays: Mapping[str, NDArray[Any]],
    graph_nodes: Sequence[onnx.NodeProto] | None = None,
    *,
    x: Sequence[int] = (1, 3, 4, 4),
    dtype: int = TensorProto.FLOAT,
    also: Sequence[str] = (),
) -> ChannelGraph:
    """Trace a network, that of `nodes` by default, from input x to outputs y and those named by ``also``."""
    graph_nodes = nodes() if graph_nodes is None else graph_nodes
    read = {name for node in graph_nodes for name in node.input}
    graph = helper.make_graph(
        graph_nodes,
        "network",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info(name, dtype, None) for name in ("y", *also)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return trace(normalize(model))


def folded(arrays: Arrays) -> Arrays:
    """Fold bn1 into conv1, channel by channel."""
    out = {name: array.copy() for name, array in arrays.items()}
    for o in range(12):
        out["conv1.w"][o] *= arrays["bn1.scale"][o] / np.sqrt(arrays["bn1.var"][o] + EPSILON)
    return out
