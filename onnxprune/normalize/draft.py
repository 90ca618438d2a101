"""A model in parts, as the passes of `normalize` work on it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.model.checks import subgraphs
from onnxprune.model.graph import fixed_names


@dataclass(slots=True)
class Draft:
    """A model in parts, so that passes neither copy weights nor touch their input.

    Attributes:
        shell: The model without nodes and initializers; ours to change.
        nodes: In topological order; a pass replaces a node, it never changes one.
        tensors: Initializers by name, which overrides the tensor's own; shared, never changed.
    """

    shell: ModelProto
    nodes: list[NodeProto]
    tensors: dict[str, TensorProto]

    def fixed_names(self) -> set[str]:
        """Collect the names that readers outside of the nodes' inputs rely on."""
        return fixed_names(self.shell.graph.output, self.nodes)


def add(graph: GraphProto, tensors: Mapping[str, TensorProto]) -> None:
    """Add copies of tensors to a graph's initializers, under these names."""
    for name, tensor in tensors.items():
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = name


def forget(values: Any, names: Container[str]) -> None:
    """Delete the entries of these names from a list of inputs or types."""
    for index in reversed(range(len(values))):
        if values[index].name in names:
            del values[index]


def names_of(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Go through the names that nodes read or give, those inside of subgraphs included."""
    for node in nodes:
        yield from (*node.input, *node.output)
        for graph in subgraphs(node):
            yield from (value.name for value in graph.input)
            yield from (tensor.name for tensor in graph.initializer)
            yield from (sparse.values.name for sparse in graph.sparse_initializer)
            yield from names_of(graph.node)
