"""Compute statistics of weights in advance.

Weight standardization and weight normalization (scaled convolutions, weight_norm) take means, variances and norms over
a weight's axes each time the network runs. ONNX Runtime computes them when it loads a model. As initializers they don't
change when channels of the weight are removed, so the removal is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.model.bodies import in_body
from onnxprune.model.checks import DEFAULT_DOMAINS, subgraphs
from onnxprune.model.graph import behind, reads
from onnxprune.model.session import run, session
from onnxprune.model.tensors import byte_size, mark_statistic
from onnxprune.normalize.parts import ModelParts, add_initializers
from onnxprune.shapes import concretize
from onnxprune.shapes.walk import RANDOM

_MOST_ELEMENTS = 2**28  # of an intermediate tensor, which can be much larger than the weights

_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
_NORMALIZATIONS = ["Batch", "Group", "Instance", "Layer", "Lp", "MeanVariance", "RMS"]
_STATISTICS = frozenset(
    {f"Reduce{r}" for r in _REDUCTIONS}
    | {f"{n}Normalization" for n in _NORMALIZATIONS}
    | {"CumSum", "LRN", "LogSoftmax", "Softmax"}
)


def compute_statistics(parts: ModelParts) -> None:
    """Replace statistics that depend on weights alone by initializers.

    Statistics that are larger than their weights, or that ONNX Runtime can't compute, stay as they are.
    """
    leaves = _leaves(parts)
    found = [n for n in parts.nodes if _is_statistic(n) and not leaves.keys().isdisjoint(n.output)]
    if not found:
        return
    for name, array in _values(parts, found).items():
        tensor = numpy_helper.from_array(array, name)
        if byte_size(tensor) <= sum(byte_size(parts.tensors[leaf]) for leaf in leaves[name]):
            mark_statistic(tensor, leaves[name])
            parts.tensors[name] = tensor
    parts.nodes = [n for n in parts.nodes if not all(o in parts.tensors for o in n.output if o)]


def _is_statistic(node: NodeProto) -> bool:
    return node.op_type in _STATISTICS and node.domain in DEFAULT_DOMAINS


def _leaves(parts: ModelParts) -> dict[str, frozenset[str]]:
    """Return the initializers behind each tensor that depends on initializers only; of one of these, itself."""
    leaves = {name: frozenset([name]) for name in parts.tensors}
    for node in parts.nodes:
        inputs = [name for name in node.input if name]
        fixed = node.op_type not in RANDOM and not in_body(node) and not any(subgraphs(node))
        if fixed and inputs and all(name in leaves for name in inputs):
            together = frozenset().union(*(leaves[name] for name in inputs))
            leaves.update((name, together) for name in node.output if name)
    return leaves


def _values(parts: ModelParts, wanted: Sequence[NodeProto]) -> dict[str, NDArray[Any]]:
    """Return the outputs of nodes that depend on initializers only; nothing if they can't be computed."""
    names = [name for node in wanted for name in node.output if name]
    nodes = behind(names, parts.nodes)
    read = {name for node in nodes for name in reads(node)}
    model = ModelProto(ir_version=parts.shell.ir_version, opset_import=parts.shell.opset_import)
    model.graph.CopyFrom(GraphProto(name="statistics", node=nodes))
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    add_initializers(model.graph, {name: tensor for name, tensor in parts.tensors.items() if name in read})
    try:
        shapes = concretize(model).shapes
        if any(prod(shapes.get(name, ())) > _MOST_ELEMENTS for node in nodes for name in node.output):
            return {}
        values = run(session(model, optimize=False), {})
    except OnnxPruneError:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
