"""The parts of a model that the passes of `normalize` work on."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.model.checks import subgraphs
from onnxprune.model.graph import fixed_names


@dataclass(slots=True)
class ModelParts:
    """A model in parts, so that passes neither copy weights nor change their input.

    Attributes:
        shell: The model without nodes and initializers; passes may change it.
        nodes: The nodes in topological order; a pass replaces a node but never changes one.
        tensors: Initializers by name, which overrides the tensor's own name; passes never change one.
    """

    shell: ModelProto
    nodes: list[NodeProto]
    tensors: dict[str, TensorProto]

    def fixed_names(self) -> set[str]:
        """Return the names of outputs and those that bodies capture, see `onnxprune.model.graph.fixed_names`."""
        return fixed_names(self.shell.graph.output, self.nodes)

    def all_names(self) -> set[str]:
        """Return the names of all tensors, those inside of bodies included."""
        return {*_names_of(self.nodes), *self.tensors, *(value.name for value in self.shell.graph.input)}


def add_initializers(graph: GraphProto, tensors: Mapping[str, TensorProto]) -> None:
    """Add copies of tensors to a graph's initializers, under these names."""
    for name, tensor in tensors.items():
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = name


def remove_named(values: Any, names: Container[str]) -> None:
    """Delete the inputs or declared types with these names from a repeated field."""
    for index in reversed(range(len(values))):
        if values[index].name in names:
            del values[index]


def _names_of(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from (*node.input, *node.output)
        for graph in subgraphs(node):
            yield from (value.name for value in graph.input)
            yield from (tensor.name for tensor in graph.initializer)
            yield from (sparse.values.name for sparse in graph.sparse_initializer)
            yield from _names_of(graph.node)
