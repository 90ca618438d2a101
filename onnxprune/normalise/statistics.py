"""Statistics of weights are numbers: what is taken over weights alone is an initialiser.

Weight standardisation and weight normalisation (scaled convolutions, weight_norm) take means, variances and norms over
a weight's axes each time the network runs. Computed beforehand, as ONNX Runtime does when it loads a model, they no
longer change with what is left of the weight, and its channels leave exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from onnxprune._bodies import in_body
from onnxprune._runtime import run, session
from onnxprune._tensors import byte_size
from onnxprune._uses import reads
from onnxprune._validate import DEFAULT_DOMAINS, subgraphs
from onnxprune.errors import OnnxPruneError
from onnxprune.normalise.draft import Draft, add

_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
_NORMALISATIONS = ["Batch", "Group", "Instance", "Layer", "Lp", "MeanVariance", "RMS"]
_STATISTICS = frozenset(
    {f"Reduce{r}" for r in _REDUCTIONS}
    | {f"{n}Normalization" for n in _NORMALISATIONS}
    | {"CumSum", "LRN", "LogSoftmax", "Softmax"}
)
_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def compute_statistics(draft: Draft) -> None:
    """Statistics of weights alone are initialisers, unless they are larger than the weights that they are taken of.

    Where ONNX Runtime can't compute them, they stay as they are.
    """
    computed = _of_weights_alone(draft)
    found = [n for n in computed if n.op_type in _STATISTICS and n.domain in DEFAULT_DOMAINS]
    if not found:
        return
    for name, array in _values(draft, computed, found).items():
        tensor = numpy_helper.from_array(array, name)
        if byte_size(tensor) <= sum(byte_size(draft.tensors[leaf]) for leaf in _leaves(name, computed, draft)):
            draft.tensors[name] = tensor
    draft.nodes = [n for n in draft.nodes if not all(o in draft.tensors for o in n.output if o)]


def _of_weights_alone(draft: Draft) -> list[NodeProto]:
    """Return the nodes that compute with nothing but initialisers, in order."""
    still = set(draft.tensors)
    computed = []
    for node in draft.nodes:
        fixed = node.op_type not in _RANDOM and not in_body(node) and not any(subgraphs(node))
        if fixed and any(node.input) and still.issuperset(filter(None, node.input)):
            still.update(node.output)
            computed.append(node)
    return computed


def _values(draft: Draft, computed: Sequence[NodeProto], wanted: Sequence[NodeProto]) -> dict[str, NDArray[Any]]:
    """Compute the outputs of some nodes."""
    names = [name for node in wanted for name in node.output if name]
    needed, nodes = set(names), []
    for node in reversed(computed):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            nodes.append(node)
    model = ModelProto(ir_version=draft.shell.ir_version, opset_import=draft.shell.opset_import)
    model.graph.CopyFrom(GraphProto(name="statistics", node=nodes[::-1]))
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    add(model.graph, {name: tensor for name, tensor in draft.tensors.items() if name in needed})
    try:
        values = run(session(model, optimise=False), {})
    except OnnxPruneError:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _leaves(name: str, computed: Sequence[NodeProto], draft: Draft) -> set[str]:
    """Return the initialisers that a tensor is computed from."""
    needed = {name}
    for node in reversed(computed):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
    return needed.intersection(draft.tensors) - {name}
