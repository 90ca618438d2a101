"""What is to be had from a model: estimates of cleaning, pruning and INT8 weights that take a moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import speedups
from onnxprune.channels.values import Mask
from onnxprune.cost.cost import Cost, cost
from onnxprune.errors import PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.model.checks import count_nodes
from onnxprune.model.file import file_size
from onnxprune.model.tensors import byte_size, elements
from onnxprune.model.wire import pieces
from onnxprune.planning.budget import candidate_steps, choose
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings.planning import Constraints, Target
from onnxprune.shapes import runnable_inputs
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel

_HALF = Target("macs", 0.5)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SCALE = 4  # bytes of the scale of an output channel


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What normalization alone brings; it changes no result.

    Attributes:
        nodes: number of nodes before and after, those of bodies included; None if functions are called.
        bytes: bytes of the file before and after.
        params: number of elements of the weights before and after.
        weights_as_inputs: number of weights that callers may replace, so that ONNX Runtime can't fold them.
    """

    nodes: tuple[int, int] | None
    bytes: tuple[int, int]
    params: tuple[int, int]
    weights_as_inputs: int


@dataclass(frozen=True, slots=True)
class Pruning:
    """What removing the same share of every group would leave.

    Attributes:
        cost: the cost at half of the MACs, or the least within the default constraints.
        bytes: bytes of the file.
    """

    cost: Cost
    bytes: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """Estimates of what is to be had.

    Attributes:
        cleaning: what cleaning brings; it comes with every model that is written.
        pruning: what pruning leaves; None if nothing can be pruned.
        int8: bytes of the file with the weights of all layers as int8, and a scale for each output channel; None if no
            layer has weights of real numbers.
        cleaned_time: the time of the cleaned model on the CPU, relative to the file's; None if it wasn't measured.
        pruned_time: that of the pruned model.
    """

    cleaning: Cleaning
    pruning: Pruning | None
    int8: int | None
    cleaned_time: Estimate | None = None
    pruned_time: Estimate | None = None


def outlook(analysis: TracedModel, *, measure: bool = False) -> Outlook:
    """Estimate what cleaning, pruning and INT8 weights would bring.

    Args:
        analysis: the traced model, loaded from a file.
        measure: whether to time the file, the cleaned and the pruned model on the CPU, which takes a few seconds.

    Raises:
        ModelError: ONNX Runtime can't run the model (OP122); only if it is measured.

    Examples:
        >>> import onnxprune as op
        >>> found = outlook(op.analyze("models/digits_resnet.onnx"))
        >>> found.int8 < found.cleaning.bytes[1] / 2
        True
    """
    graph, model = analysis.graph, analysis.model
    whole, stored = cost(PrunedGraph(graph)), model.proto.graph
    size = pieces(graph.proto)[0]
    weights = {tensor.name for tensor in stored.initializer}
    nodes = None if model.proto.functions else (count_nodes(stored), count_nodes(graph.proto.graph))
    given = sum(value.name in weights for value in stored.input)
    cleaning = Cleaning(nodes, (file_size(model) or size, size), (analysis.cost.params, whole.params), given)
    removed = _half(graph)
    left = None if removed is None else cost(PrunedGraph(graph, removed))
    pruning = None if left is None else Pruning(left, size - whole.size + left.size)
    saved = sum(byte_size(t) - elements(t) - _SCALE * max(t.dims) for t in _layer_weights(graph, whole))
    times: tuple[Estimate | None, Estimate | None] = (None, None)
    if measure:
        times = _times(analysis, removed)
    return Outlook(cleaning, pruning, size - saved if saved > 0 else None, *times)


def _half(graph: ChannelGraph) -> Mask | None:
    """Return what uniform pruning removes at half of the MACs, or as much as it can; None for nothing."""
    scores, constraints = [np.ones(len(group.units)) for group in graph.groups], Constraints()
    try:
        removed = choose(graph, scores, constraints, target=_HALF)
    except PlanError:
        removed, steps = candidate_steps(graph, scores, constraints)
        for step in (step for own in steps.values() for step in own):
            removed[step.units] = True
    return removed if removed.any() else None


def _layer_weights(graph: ChannelGraph, whole: Cost) -> Iterator[TensorProto]:
    """Yield the matrices and kernels of real numbers that layers read."""
    layers = {layer.node for layer in whole.layers}
    read = {name for node in graph.proto.graph.node if node.name in layers for name in node.input}
    for tensor in graph.proto.graph.initializer:
        if tensor.name in read and tensor.data_type in _FLOATS and len(tensor.dims) > 1 and elements(tensor):
            yield tensor


def _times(analysis: TracedModel, removed: Mask | None) -> tuple[Estimate | None, Estimate | None]:
    """Return the times of the cleaned and the pruned model, relative to the file's."""
    graph, settings = analysis.graph, SessionSettings(Provider(CPU))
    feeds = runnable_inputs(graph.proto, graph.shapes.inputs, 0)
    models = [analysis.model.path or graph.proto, graph.proto]
    if removed is not None:
        models.append(rewrite(PrunedGraph(graph, removed)))
    subjects = [TimedSession(model, feeds, settings) for model in models]
    found = [faster.inverse for faster in speedups(subjects)]
    return found[0], found[1] if len(found) > 1 else None
