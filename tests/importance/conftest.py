"""A small network of every shape that matters here, and the obvious way to score it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.normalise import normalise
from onnxprune.trace import ChannelGraph, trace

Weights = dict[str, np.ndarray]
Build = Callable[..., ChannelGraph]

EPSILON = 1e-3


def make_weights(seed: int = 0) -> Weights:
    """conv1 (12 channels) - bn1 - relu - conv2 (10 channels) - relu - flatten (16 positions each) - fc."""
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
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    weights["bn1.var"] = rng.uniform(0.5, 2, size=12).astype(np.float32)
    return weights


def make_nodes(*, bn: bool = True) -> list[onnx.NodeProto]:
    norm = ["h", "bn1.scale", "bn1.bias", "bn1.mean", "bn1.var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv1.w"], ["h"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", norm, ["n"], "bn1", epsilon=EPSILON),
        helper.make_node("Relu", ["n" if bn else "h"], ["r"], "relu1"),
        helper.make_node("Conv", ["r", "conv2.w", "conv2.b"], ["c"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["s"], "relu2"),
        helper.make_node("Flatten", ["s"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc", transB=1),
    ]
    return nodes if bn else [n for n in nodes if n.name != "bn1"]


def build(
    weights: Mapping[str, np.ndarray],
    nodes: list[onnx.NodeProto] | None = None,
    *,
    x: tuple[int, ...] = (1, 3, 4, 4),
    dtype: int = TensorProto.FLOAT,
) -> ChannelGraph:
    """Trace the network made of nodes (those above by default), input x and output y."""
    nodes = make_nodes() if nodes is None else nodes
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return trace(normalise(model))


def folded(weights: Weights) -> Weights:
    """Fold bn1 into conv1, channel by channel."""
    out = {n: w.copy() for n, w in weights.items()}
    for o in range(12):
        out["conv1.w"][o] *= weights["bn1.scale"][o] / np.sqrt(weights["bn1.var"][o] + EPSILON)
    return out
