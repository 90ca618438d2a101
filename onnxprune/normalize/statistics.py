"""Statistics of weights are numbers: what is taken over weights alone is an initializer.

Weight standardization and weight normalization (scaled convolutions, weight_norm) take means, variances and norms over
a weight's axes each time the network runs. Computed beforehand, as ONNX Runtime does when it loads a model, they no
longer change with what is left of the weight, and its channels leave exactly.
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
from onnxprune.model.tensors import byte_size
from onnxprune.normalize.draft import Draft, add
from onnxprune.shapes import concretize
from onnxprune.shapes.fold import RANDOM

_MOST_ELEMENTS = 2**28  # of a tensor on the way: a few small weights can make an enormous one

_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
_NORMALIZATIONS = ["Batch", "Group", "Instance", "Layer", "Lp", "MeanVariance", "RMS"]
_STATISTICS = frozenset(
    {f"Reduce{r}" for r in _REDUCTIONS}
    | {f"{n}Normalization" for n in _NORMALIZATIONS}
    | {"CumSum", "LRN", "LogSoftmax", "Softmax"}
)


def compute_statistics(draft: Draft) -> None:
    """Statistics of weights alone are initializers, unless they are larger than the weights that they are taken of.

    Where ONNX Runtime can't compute them, they stay as they are.
    """
    leaves = _leaves(draft)
    found = [n for n in draft.nodes if _is_statistic(n) and not leaves.keys().isdisjoint(n.output)]
    if not found:
        return
    for name, array in _values(draft, found).items():
        tensor = numpy_helper.from_array(array, name)
        if byte_size(tensor) <= sum(byte_size(draft.tensors[leaf]) for leaf in leaves[name]):
            draft.tensors[name] = tensor
    draft.nodes = [n for n in draft.nodes if not all(o in draft.tensors for o in n.output if o)]


def _is_statistic(node: NodeProto) -> bool:
    return node.op_type in _STATISTICS and node.domain in DEFAULT_DOMAINS


def _leaves(draft: Draft) -> dict[str, frozenset[str]]:
    """Return the initializers behind each tensor that is computed from nothing else, itself if it is one."""
    leaves = {name: frozenset([name]) for name in draft.tensors}
    for node in draft.nodes:
        inputs = [name for name in node.input if name]
        fixed = node.op_type not in RANDOM and not in_body(node) and not any(subgraphs(node))
        if fixed and inputs and all(name in leaves for name in inputs):
            together = frozenset().union(*(leaves[name] for name in inputs))
            leaves.update((name, together) for name in node.output if name)
    return leaves


def _values(draft: Draft, wanted: Sequence[NodeProto]) -> dict[str, NDArray[Any]]:
    """Compute the outputs of nodes that only need initializers."""
    names = [name for node in wanted for name in node.output if name]
    nodes = behind(names, draft.nodes)
    read = {name for node in nodes for name in reads(node)}
    model = ModelProto(ir_version=draft.shell.ir_version, opset_import=draft.shell.opset_import)
    model.graph.CopyFrom(GraphProto(name="statistics", node=nodes))
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    add(model.graph, {name: tensor for name, tensor in draft.tensors.items() if name in read})
    try:
        shapes = concretize(model).shapes
        if any(prod(shapes.get(name, ())) > _MOST_ELEMENTS for node in nodes for name in node.output):
            return {}
        values = run(session(model, optimize=False), {})
    except OnnxPruneError:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
