"""One view of a graph: which nodes make and read each tensor, what an output needs, and copies with other nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import get_attribute_value, make_tensor_value_info, np_dtype_to_tensor_dtype

from onnxprune.model.checks import captured_names
from onnxprune.model.wire import copy_model, copy_without

OF_SHAPE = frozenset({"Shape", "Size"})
"""The operators that read the shape of their input, and none of its values."""

RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})
"""The operators that run over the steps of a sequence: inputs 4, 5 and 6 are its lengths and the initial states."""


class GraphIndex:
    """Index of a graph's nodes and tensors; each part is built at its first use.

    Nodes in closed bodies (of Loop, Scan, SequenceMap) are not indexed. What such a body captures counts as read by
    the node that holds it.

    Attributes:
        graph: the graph. The index doesn't follow later changes of its nodes, inputs and outputs.
        nodes: its nodes, in order.
    """

    def __init__(self, graph: GraphProto) -> None:
        """Index a graph."""
        self.graph = graph
        self.nodes: list[NodeProto] = list(graph.node)

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        """The node that makes each tensor; inputs and initializers have none."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[NodeProto]]:
        """The nodes that read each tensor, in order; a node that reads it twice is there twice."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in reads(node):
                readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def uses(self) -> Counter[str]:
        """How often each tensor is read, by nodes and as an output of the graph."""
        uses = Counter({name: len(nodes) for name, nodes in self.readers.items()})
        uses.update(self.outputs)
        return uses

    @cached_property
    def outputs(self) -> list[str]:
        """The names of the graph's outputs, in order."""
        return [output.name for output in self.graph.output]

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The initializers by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def positions(self) -> dict[str, int]:
        """The position of each node, by its name; names are unique in a normalized graph."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def only_reader(self, tensor: str) -> NodeProto | None:
        """Return the node that reads a tensor; None if it is read more than once, or is an output of the graph."""
        return self.readers[tensor][0] if tensor in self.readers and self.uses[tensor] == 1 else None

    def source(self, tensor: str, through: Collection[str]) -> str:
        """Return the tensor that one is made from by nodes of some operators, following their first inputs."""
        while (node := self.makers.get(tensor)) is not None and node.op_type in through:
            tensor = node.input[0]
        return tensor


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name: numbers, strings, lists, tensors or graphs.

    References to a function's attributes are left out: they have no value of their own.
    """
    return {a.name: _value(a) for a in node.attribute if not a.ref_attr_name}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return one attribute's value as `attributes` does, or the default if the node doesn't have it."""
    return next((_value(a) for a in node.attribute if a.name == name and not a.ref_attr_name), default)


def _value(item: AttributeProto) -> Any:
    value = get_attribute_value(item)
    if item.type == AttributeProto.STRING:
        return value.decode(errors="replace")
    return [v.decode(errors="replace") for v in value] if item.type == AttributeProto.STRINGS else value


def opsets_of(model: ModelProto) -> dict[str, int]:
    """Return the version of each domain of operators; that of ONNX's own is ai.onnx."""
    return {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's own operators in a model."""
    return opsets_of(model)["ai.onnx"]


def reads(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, repeated where it reads one twice, then what its bodies capture."""
    yield from filter(None, node.input)
    yield from captured_names(node)


def fixed_names(outputs: Iterable[ValueInfoProto], nodes: Iterable[NodeProto]) -> set[str]:
    """Return the names that can't be changed at a node's inputs alone: those of outputs, and those bodies capture."""
    return {output.name for output in outputs}.union(*map(captured_names, nodes))


def behind(tensors: Iterable[str], nodes: Sequence[NodeProto], given: Collection[str] = ()) -> list[NodeProto]:
    """Return the nodes that compute some tensors, in order.

    Args:
        tensors: their names.
        nodes: all nodes, in topological order.
        given: tensors that needn't be computed.
    """
    needed = {name for name in tensors if name not in given}
    found = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(name for name in reads(node) if name not in given)
            found.append(node)
    return found[::-1]


def names_in(graph: GraphProto) -> set[str]:
    """Return the names of a graph's nodes and tensors, which a new one can't have; see `unique`."""
    made = {name for node in graph.node for name in (node.name, *node.output) if name}
    return made | {entry.name for entries in (graph.input, graph.initializer) for entry in entries}


def unique(name: str, taken: set[str]) -> str:
    """Return a name, with a number added if it is taken, and add it to the taken ones."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def with_inputs(node: NodeProto, inputs: Iterable[str]) -> NodeProto:
    """Return a copy of a node with other inputs."""
    copy = copy_without(node, "input")
    copy.input.extend(inputs)
    return copy


def with_nodes(
    model: ModelProto, nodes: Iterable[NodeProto], initializers: Iterable[TensorProto] | None = None
) -> ModelProto:
    """Return a copy of a model with other nodes, and without the declared types of tensors that none of them makes.

    Args:
        model: the model. It isn't changed, nor are its weights copied if others are given.
        nodes: the nodes, in topological order; they are copied.
        initializers: initializers in place of the model's.
    """
    copy = copy_model(model, "node", "value_info", *(() if initializers is None else ("initializer",)))
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(initializers or ())
    made = {name for node in copy.graph.node for name in node.output}
    copy.graph.value_info.extend(v for v in model.graph.value_info if v.name in made)
    return copy


def extract(model: ModelProto, outputs: Iterable[str], given: Mapping[str, NDArray[Any]] | None = None) -> ModelProto:
    """Return the part of a model that computes some of its tensors.

    Args:
        model: a model in topological order.
        outputs: names of tensors; they become the part's outputs, in this order.
        given: examples of tensors that become the part's inputs; the model's own inputs by default.
    """
    given = given or {}
    wanted = list(dict.fromkeys(outputs))
    nodes = behind(wanted, model.graph.node, given)
    needed = {*wanted, *(name for node in nodes for name in reads(node))}
    part = copy_model(model, "node", "initializer", "input", "output", "value_info")
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.input.extend(i for i in model.graph.input if i.name in needed and i.name not in given)
    part.graph.input.extend(
        make_tensor_value_info(name, np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in given.items()
        if name in needed
    )
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return part


_ELEMENTWISE = frozenset({"Cast", "DequantizeLinear", "Identity"})


def owned_weights(graph: GraphProto, uses: Mapping[str, int]) -> dict[str, str]:
    """Return the tensors that hold an initializer's elements, unmoved, and have one reader, with the initializer.

    Args:
        graph: the graph.
        uses: how often each tensor is read (`GraphIndex.uses`).
    """
    sizes = {t.name: prod(t.dims) for t in graph.initializer}
    owned = {name: name for name in sizes if uses.get(name) == 1}
    for node in graph.node:
        if node.op_type not in _ELEMENTWISE or not node.input or not node.output:
            continue
        # A scale for each position, or each block, of another axis than the first doesn't go with the rows.
        second_axis = any(sizes.get(n, 2) > 1 for n in node.input[1:] if n) and attribute(node, "axis", 1) != 0
        if node.input[0] in owned and uses.get(node.output[0]) == 1 and not second_axis:
            owned[node.output[0]] = owned[node.input[0]]
    return owned
