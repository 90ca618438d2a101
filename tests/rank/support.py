"""Networks with layers of low rank, and the replacement of layers by two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxprune.model.checks import subgraphs
from onnxprune.rank.factors import Factored, factor
from onnxprune.shapes import concretize
from onnxprune.trace import ChannelGraph, trace
from tests.toolbox import Net


def factored(graph: ChannelGraph, ranks: dict[str, int]) -> tuple[Factored, ChannelGraph]:
    found = factor(graph.proto, graph.shapes, ranks)
    if not any(True for node in graph.proto.graph.node for _ in subgraphs(node)):  # of If, which stand open here
        onnx.checker.check_model(found.proto, full_check=True)
    return found, trace(found.proto, shapes=concretize(found.proto, graph.shapes.inputs), policies=graph.policies)


def deep(rank: int | None = None) -> ModelProto:
    """Return a classifier of three convolutions; if a rank is given, their weights have it, about."""
    net = Net(seed=7)
    x = net.input((4, 3, 12, 12), "image")
    for name in ("one", "two", "three"):
        x = net.op("Relu", net.conv(x, 16, 3, name=name))
    if rank is not None:
        for name in ("two", "three"):
            weight = numpy_helper.to_array(net.tensors[f"{name}_w"]).reshape(16, -1)
            u, s, v = np.linalg.svd(weight, full_matrices=False)
            s[rank:] *= 1e-3
            net.tensors[f"{name}_w"] = numpy_helper.from_array(
                np.ascontiguousarray(((u * s) @ v).reshape(16, 16, 3, 3), dtype=np.float32), f"{name}_w"
            )
    net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 6, name="head"))
    return net.model()


def images(count: int = 8) -> Callable[[], Iterator[dict[str, NDArray[Any]]]]:
    data = np.random.default_rng(2).standard_normal((count, 4, 3, 12, 12)).astype(np.float32)
    return lambda: ({"image": batch} for batch in data)
