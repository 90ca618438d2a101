"""Layer times for providers whose profiles lack them: each layer is extracted and timed alone.

GPU kernels run asynchronously, so a profile of the host shows when they start, not how long they take; and providers
that compile a graph (OpenVINO, TensorRT) report it as one kernel. There, each layer becomes a separate network with
inputs and outputs bound on the device. The time of an empty network is subtracted as the overhead of a run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.benchmarking.layers import layer_name, layer_nodes
from onnxprune.benchmarking.profile import Kernel, Profile, spread_of
from onnxprune.benchmarking.rounds import Seconds, warm_up
from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.model.graph import extract, reads
from onnxprune.runtime.provider import CPU
from onnxprune.shapes import Shapes, concretize, generate_inputs

_WARM_UP = 0.2  # seconds, at most
_RUNS = 30
_KNOWN = 0.9  # share of a profile's time that must belong to known layers


def has_layer_times(found: Profile, settings: SessionSettings) -> bool:
    """Whether a provider's profile has the times of its layers."""
    if settings.provider.device is not None:
        return False
    whole = sum(kernel.seconds for kernel in found.kernels)
    known = sum(kernel.seconds for kernel in found.kernels if kernel.layer is not None)
    return settings.provider.name == CPU or known > _KNOWN * whole


def isolated(
    proto: ModelProto, feeds: Feeds, settings: SessionSettings, *, only: Collection[str] | None = None
) -> Profile:
    """Time each layer of a network alone.

    Args:
        proto: the network, normalized.
        feeds: its inputs, for their shapes.
        settings: the session's settings.
        only: names of the contractions whose layers are timed; all by default.

    Returns:
        A profile with one kernel per layer, named after its contraction, without nodes before the first layer.

    Raises:
        ModelError: ONNX Runtime can't run a layer (OP122).
    """
    shapes = concretize(proto, {name: array.shape for name, array in feeds.items()}, feeds)
    overhead = float(np.median(_runs(_empty(proto), {"x": np.zeros((1, 1), np.float32)}, settings)))
    kernels = []
    for layer, nodes in enumerate(layer_nodes(proto)):
        if layer and (only is None or layer_name(nodes) in only):
            part, own = cut_out(proto, nodes, shapes)
            runs = _runs(part, own, settings)
            seconds, provider = max(0.0, float(np.median(runs)) - overhead), settings.provider.name
            kernels.append(Kernel(layer_name(nodes), nodes[0].op_type, "", provider, layer, seconds, spread_of(runs)))
    return Profile(tuple(kernels), sum(kernel.seconds for kernel in kernels))


def cut_out(proto: ModelProto, nodes: list[NodeProto], shapes: Shapes) -> tuple[ModelProto, dict[str, NDArray[Any]]]:
    """Extract some nodes of a network.

    Returns:
        The extracted network, and arrays for its inputs: known values where there are, generated ones elsewhere.
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
    generated = generate_inputs(helper.make_model(helper.make_graph([], "", infos, [])), sizes)
    return {name: shapes.values.get(name, array) for name, array in generated.items()}


def _runs(proto: ModelProto, feeds: Feeds, settings: SessionSettings) -> Seconds:
    opened = TimedSession(proto, feeds, settings)
    warm_up(opened, _WARM_UP)
    return opened.block(_RUNS)


def _empty(proto: ModelProto) -> ModelProto:
    """Return a network of one Identity, with the same opset and IR versions."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
