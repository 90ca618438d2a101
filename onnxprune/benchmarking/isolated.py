"""Times of layers where the profile doesn't tell them: each layer is run by itself.

A GPU works on while the host goes ahead, so a profile of the host shows when kernels start, not what they take; and
providers that compile a graph (OpenVINO, TensorRT) show all of it as one kernel. There each layer becomes a network of
its own, with its inputs and outputs bound on the device, and is timed whole; what an empty network takes is the price
of a run, and is taken off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.benchmarking.layers import heads, partition
from onnxprune.benchmarking.profile import Kernel, Profile
from onnxprune.benchmarking.rounds import warm_up
from onnxprune.benchmarking.session import Feeds, Opened
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.model.graph import extract, reads
from onnxprune.rewrite.verify import generate_inputs
from onnxprune.runtime.provider import CPU
from onnxprune.shapes import Shapes, concretize

_WARM = 0.2  # seconds to warm up, at most
_RUNS = 30
_TOLD = 0.9  # of the time that a profile must know the layer of


def tells_layers(found: Profile, settings: SessionSettings) -> bool:
    """Tell whether a provider's profile says what its layers take."""
    if settings.provider.device is not None:
        return False
    whole = sum(kernel.seconds for kernel in found.kernels)
    told = sum(kernel.seconds for kernel in found.kernels if kernel.layer is not None)
    return settings.provider.name == CPU or told > _TOLD * whole


def isolated(
    proto: ModelProto, feeds: Feeds, settings: SessionSettings, *, only: Collection[str] | None = None
) -> Profile:
    """Measure the layers of a network, each by itself.

    Args:
        proto: the network, normalized.
        feeds: its inputs, whose shapes count.
        settings: the session's.
        only: names of the contractions whose layers are wanted; all by default.

    Returns:
        A profile in which each layer is one kernel, called as its contraction. What comes before the first layer isn't
        in it.

    Raises:
        ModelError: ONNX Runtime can't run a layer (OP122).
    """
    shapes = concretize(proto, {name: array.shape for name, array in feeds.items()})
    members: dict[int, list[NodeProto]] = {}
    for node, layer in zip(proto.graph.node, partition(proto), strict=True):
        members.setdefault(layer, []).append(node)
    overhead = _median(_empty(proto), {"x": np.zeros((1, 1), np.float32)}, settings)
    kernels = []
    for layer, name in enumerate(heads(proto), 1):
        if only is None or name in only:
            part, own = cut_out(proto, members[layer], shapes)
            seconds = max(0.0, _median(part, own, settings) - overhead)
            kernels.append(Kernel(name, members[layer][0].op_type, "", settings.provider.name, layer, seconds))
    return Profile(tuple(kernels), sum(kernel.seconds for kernel in kernels))


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
