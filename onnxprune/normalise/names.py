"""Names of their own: of nodes, and of vectors that exporters store once for many readers."""

from __future__ import annotations

from collections import Counter

from onnx import TensorProto

from onnxprune._names import unique
from onnxprune._tensors import elements
from onnxprune._wire import copy_without
from onnxprune.normalise.draft import Draft, names_of, with_inputs

_UNITLESS = (TensorProto.STRING, TensorProto.BOOL, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def name_nodes(draft: Draft) -> None:
    """Every node has a name of its own; names that are unique, or the first of equals, stay."""
    taken = {node.name for node in draft.nodes}
    seen: set[str] = set()
    for index, node in enumerate(draft.nodes):
        if not node.name or node.name in seen:
            output = next(filter(None, node.output), "")
            node = copy_without(node, "name")
            node.name = unique(f"{node.op_type}_{output}", taken)
            draft.nodes[index] = node
        seen.add(node.name)


def unshare_vectors(draft: Draft) -> None:
    """A vector (one axis holds all its numbers, more than one) serves a single node input.

    Exporters store equal biases once, which would couple layers that have nothing to do with each
    other; a matrix that is shared was tied by the network's author and stays one tensor. Where the
    caller or a subgraph needs the name, every node input gets a copy.
    """
    uses = Counter(name for node in draft.nodes for name in node.input)
    owned = draft.fixed_names()
    vectors = {
        name for name, tensor in draft.tensors.items() if _is_vector(tensor) and uses[name] + (name in owned) > 1
    }
    taken = {*names_of(draft.nodes), *draft.tensors} | {i.name for i in draft.shell.graph.input}
    for index, node in enumerate(draft.nodes):
        inputs = list(node.input)
        for position, name in enumerate(inputs):
            if name in vectors and name in owned:
                inputs[position] = unique(f"{name}::{node.name}", taken)
                draft.tensors[inputs[position]] = draft.tensors[name]
            owned.add(name)
        if inputs != node.input:
            draft.nodes[index] = with_inputs(node, inputs)


def _is_vector(tensor: TensorProto) -> bool:
    numeric = tensor.data_type not in _UNITLESS
    return numeric and 1 < elements(tensor) == max(tensor.dims, default=0)
