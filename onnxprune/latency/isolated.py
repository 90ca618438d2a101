"""Times of layers on providers whose kernels only start where the profile looks: each layer is run by itself.

A GPU works on while the host goes ahead, so a profile of the host shows when kernels start, not what they take. Here
each layer becomes a network of its own, with its inputs and outputs bound on the device, and is timed whole; what an
empty network takes is the price of a run, and is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune._uses import reads
from onnxprune.benchmark.layers import heads, partition
from onnxprune.benchmark.rounds import warm_up
from onnxprune.benchmark.session import Feeds, Opened
from onnxprune.benchmark.settings import SessionSettings
from onnxprune.recover.extract import extract
from onnxprune.shapes import Shapes, concretise
from onnxprune.verify import generate_inputs

_WARM = 0.2  # seconds to warm up
_RUNS = 30


def isolated_seconds(proto: ModelProto, feeds: Feeds, settings: SessionSettings) -> dict[str, float]:
    """Measure every layer of a network by itself.

    Args:
        proto: the network.
        feeds: its inputs, whose shapes count.
        settings: the session's.

    Returns:
        Seconds by the name of the layer's contraction.

    Raises:
        ModelError: ONNX Runtime can't run a layer (OP122).
    """
    shapes = concretise(proto, {name: array.shape for name, array in feeds.items()})
    members: dict[int, list[NodeProto]] = {}
    for node, layer in zip(proto.graph.node, partition(proto), strict=True):
        members.setdefault(layer, []).append(node)
    overhead = _median(_empty(proto), {"x": np.zeros((1, 1), np.float32)}, settings)
    found = {}
    for name, (_, nodes) in zip(heads(proto), sorted((k, v) for k, v in members.items() if k), strict=True):
        part, own = cut_out(proto, nodes, shapes)
        found[name] = max(0.0, _median(part, own, settings) - overhead)
    return found


def cut_out(proto: ModelProto, nodes: list[NodeProto], shapes: Shapes) -> tuple[ModelProto, dict[str, NDArray[Any]]]:
    """Make some nodes of a network a network of their own.

    Returns:
        The network, and arrays for its inputs: what is known of them as it is, anything else generated.
    """
    inside = {name for node in nodes for name in node.output if name}
    ids = {id(node) for node in nodes}
    outside = {o.name for o in proto.graph.output}
    outside |= {n for node in proto.graph.node if id(node) not in ids for n in reads(node)}
    weights = {t.name for t in proto.graph.initializer}
    needed = {n for node in nodes for n in reads(node)} - inside - weights
    given = _arrays({name: shapes.shapes[name] for name in sorted(needed)}, shapes)
    return extract(proto, [n for n in inside if n in outside], given), given


def _arrays(sizes: Mapping[str, tuple[int, ...]], shapes: Shapes) -> dict[str, NDArray[Any]]:
    infos = [helper.make_tensor_value_info(name, shapes.types[name], shape) for name, shape in sizes.items()]
    drawn = generate_inputs(helper.make_model(helper.make_graph([], "", infos, [])), sizes)
    return {name: shapes.values.get(name, array) for name, array in drawn.items()}


def _median(proto: ModelProto, feeds: Feeds, settings: SessionSettings) -> float:
    opened = Opened(proto, feeds, settings)
    warm_up(opened, _WARM)
    return float(np.median(opened.block(_RUNS)))


def _empty(proto: ModelProto) -> ModelProto:
    """Return a network that does nothing, of the same versions."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
