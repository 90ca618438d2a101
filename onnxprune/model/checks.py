"""Checks of a decoded model: text, operator sets, tensors, names, and the order of nodes.

Nothing here trusts the model: strings may not be text, sizes may be huge, and nesting may be deep.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import onnx
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnxprune.errors import ModelError
from onnxprune.model.tensors import is_known_type
from onnxprune.runtime.library import max_ir_version

OLDEST_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")
_MAX_DEPTH = 100  # protobuf's own limit, beyond which no reader follows
_MAX_SIZE = 2**31  # of an input's axis
_POSITIVE = frozenset({"blocksize", "dilations", "group", "kernel_shape", "strides"})  # attributes
_CONTENTS = {  # kinds of attribute whose default isn't a value
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}


def messages(model: ModelProto) -> Iterator[Message]:
    """Yield all of a model's messages, parents before children.

    Raises:
        ModelError: Messages are nested too deeply (OP119), or a string isn't text (OP103).
    """
    stack: list[tuple[Message, int]] = [(model, 0)]
    while stack:
        message, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise ModelError("OP119", f"subgraphs are nested more than {_MAX_DEPTH // 3} deep")
        fields = _fields(message.DESCRIPTOR)
        texts = [getattr(message, name) for name in fields.text]
        for name in fields.texts:
            texts += getattr(message, name)
        if bytes in map(type, texts):  # what protobuf returns for a string that isn't UTF-8
            raise ModelError("OP103", f"a {message.DESCRIPTOR.name} has a name or note that isn't UTF-8 text")
        yield message
        for name in fields.children:
            if children := getattr(message, name):
                stack += [(child, depth + 1) for child in reversed(children)]
        for name in filter(message.HasField, fields.child):
            stack.append((getattr(message, name), depth + 1))


def check_header(model: ModelProto) -> None:
    """Check that a model has a graph and that its versions are supported; drop operator sets imported twice alike.

    Raises:
        ModelError: there is no graph, node or output (OP104), or the opset (OP108) or IR version (OP109) is
            unsupported.
    """
    graph = model.graph
    for name, part in {"graph": model.HasField("graph"), "nodes": graph.node, "outputs": graph.output}.items():
        if not part:
            raise ModelError("OP104", f"the model has no {name}", hint="is it an ONNX file?")
    if not 0 < model.ir_version <= max_ir_version():
        cause = f"IR version {model.ir_version}; ONNX Runtime here reads 1 to {max_ir_version()}"
        raise ModelError("OP109", cause, hint="upgrade onnxruntime, or export with an older one")
    versions: dict[str, int] = {}
    for opset in model.opset_import:
        domain = "" if opset.domain in DEFAULT_DOMAINS else opset.domain
        if versions.setdefault(domain, opset.version) != opset.version:
            cause = f"domain {domain!r} is imported in versions {versions[domain]} and {opset.version}"
            raise ModelError("OP108", cause, hint="remove one of the entries of opset_import")
    if len(versions) < len(model.opset_import):  # the same version twice is harmless, but not every reader accepts it
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in versions.items())
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in DEFAULT_DOMAINS and not OLDEST_OPSET <= opset.version <= newest:
            raise ModelError(
                "OP108",
                f"opset {opset.version}; {OLDEST_OPSET} to {newest} are supported",
                hint="convert the model: onnx.version_converter.convert_version(model, 17)",
            )
    if "" not in versions and any(node.domain in DEFAULT_DOMAINS for node in model.graph.node):
        raise ModelError("OP108", "the model has standard operators but imports no opset for them")


def check_values(values: Collection[ValueInfoProto]) -> None:
    """Check that the types of inputs or outputs are known and that their sizes are possible.

    Raises:
        ModelError: an element type is unknown (OP112), or a size is impossible (OP111).
    """
    for value in values:
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type and not is_known_type(tensor.elem_type):
            raise ModelError("OP112", f"unknown data type {tensor.elem_type}", where=f'"{value.name}"')
        for dim in tensor.shape.dim:
            if not -1 <= dim.dim_value < _MAX_SIZE:  # -1 is common for "any"
                raise ModelError("OP111", f"impossible size {dim.dim_value}", where=f'"{value.name}"')


def check_inputs(graph: GraphProto) -> None:
    """Check that the inputs of a model say what they hold; those with an initializer needn't.

    Raises:
        ModelError: an input has no type, or no element type (OP112).
    """
    given = {tensor.name for tensor in graph.initializer}
    given.update(sparse.values.name for sparse in graph.sparse_initializer)
    for entry in graph.input:
        kind = entry.type.WhichOneof("value")
        if entry.name not in given and (
            kind is None or (kind == "tensor_type" and not entry.type.tensor_type.elem_type)
        ):
            raise ModelError("OP112", "an input has no data type", where=f'"{entry.name}"')


def check_graphs(model: ModelProto) -> None:
    """Check the names of all graphs, and bring their nodes into topological order; sorting is stable.

    Outputs of Split without a name get one: ONNX Runtime crashes without, and the pieces behind would be miscounted.

    Raises:
        ModelError: there is a cycle (OP105), a name without a producer (OP106) or with two (OP107), or a malformed
            node (OP123).
    """
    _check_graph(model.graph, ())
    for function in model.functions:
        where = f"function {function.name!r}"
        _check_nodes(function.node, [*function.input], [*function.output], (), where)


def captured_names(node: NodeProto) -> set[str]:
    """Return the names that a node's bodies (of If, Loop, Scan) read from the graphs around them."""
    names: set[str] = set()
    for graph in subgraphs(node):
        own = set(_given(graph)).union(*(inner.output for inner in graph.node))
        for inner in graph.node:
            names |= captured_names(inner).union(inner.input) - own
        names |= {output.name for output in graph.output} - own
    return names - {""}


def _check_graph(graph: GraphProto, scopes: tuple[set[str], ...]) -> None:
    outputs = [output.name for output in graph.output]
    _check_nodes(graph.node, _given(graph), outputs, scopes, f"graph {graph.name!r}")


def _check_nodes(nodes: Any, given: list[str], outputs: list[str], scopes: tuple[set[str], ...], where: str) -> None:
    """Check one graph or function body, given the names of the graphs around it."""
    for node in nodes:
        _check_node(node)
    producers: dict[str, int] = dict.fromkeys(given, -1)
    if "" in producers:
        raise ModelError("OP123", "an input or initializer has no name", where=where)
    if len(producers) < len(given):
        name = next(name for name, count in Counter(given).items() if count > 1)
        raise ModelError("OP107", f"{name!r} is defined twice", where=where)
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producers:
                hint = None if name not in outputs else f"export it again with another name for the output {name!r}"
                raise ModelError("OP107", f"{name!r} is defined twice", where=describe(node), hint=hint)
            producers[name] = index
    for index, node in enumerate(nodes):
        if node.op_type == "Split" and node.domain in DEFAULT_DOMAINS:
            for i in (i for i, name in enumerate(node.output) if not name):
                name = f"{node.input[0]}.piece{i}" if node.input else f"piece{i}"
                while name in producers or any(name in scope for scope in scopes):
                    name += "_"
                producers[name], node.output[i] = index, name

    inner = (*scopes, set(producers))
    needs: list[set[int]] = []
    for node in nodes:
        reads = captured_names(node).union(node.input) - {""}
        for name in sorted(reads.difference(producers)):
            if not any(name in scope for scope in scopes):
                raise ModelError("OP106", f"nothing produces {name!r}", where=describe(node))
        needs.append({producers[name] for name in reads if producers.get(name, -1) >= 0})
        for graph in subgraphs(node):
            _check_graph(graph, inner)
    for name in outputs:
        if not any(name in scope for scope in inner):
            raise ModelError("OP106", f"nothing produces the output {name!r}", where=where)
    _sort(nodes, needs)


def _check_node(node: NodeProto) -> None:
    names = [attribute.name for attribute in node.attribute]
    if not node.op_type:
        raise ModelError("OP123", "a node has no operator type", where=describe(node))
    if not all(names) or len(set(names)) < len(names):
        raise ModelError("OP123", "an attribute has no name, or that of another", where=describe(node))
    if node.op_type == "If" and node.domain in DEFAULT_DOMAINS:
        for body in subgraphs(node):
            if len(body.output) != len(node.output):
                cause = f"a body has {len(body.output)} results for {len(node.output)} outputs"
                raise ModelError("OP123", cause, where=describe(node))
    for attribute in node.attribute:
        if node.op_type == "Split" and attribute.name == "num_outputs" and attribute.i != len(node.output):
            cause = f"a Split into {attribute.i} has {len(node.output)} outputs"  # onnx writes beyond its memory
            raise ModelError("OP123", cause, where=describe(node))
        field = _CONTENTS.get(attribute.type)
        absent = attribute.type == AttributeProto.UNDEFINED or (field is not None and not attribute.HasField(field))
        if absent and not attribute.ref_attr_name:  # a reference to a function's attribute
            cause = f"attribute {attribute.name!r} has no value"
            raise ModelError("OP123", cause, where=describe(node))
        numbers = [attribute.i] if attribute.type == AttributeProto.INT else attribute.ints
        given = attribute.name in _POSITIVE and node.domain in DEFAULT_DOMAINS and not attribute.ref_attr_name
        if given and min(numbers, default=1) < 1:
            cause = f"attribute {attribute.name!r} isn't positive"  # ONNX Runtime divides by it
            raise ModelError("OP123", cause, where=describe(node))


def _sort(nodes: Any, needs: list[set[int]]) -> None:
    """Bring nodes into topological order, earlier ones first where there is a choice."""
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return
    sorter = TopologicalSorter(dict(enumerate(needs)))
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1][1:]
        first = cycle.index(min(cycle))
        names = [describe(nodes[index]) for index in cycle[first:] + cycle[:first]]
        where = " -> ".join(names[:5]) + (" -> ..." if len(names) > 5 else "")
        raise ModelError("OP105", f"the graph has a cycle of {len(cycle)} nodes", where=where) from None
    ready: list[int] = []
    order = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    copies = [NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del nodes[:]
    nodes.extend(copies)


def describe(node: NodeProto) -> str:
    """Return a node's description for messages: its operator, and its name or first output."""
    return f'{node.op_type} "{node.name or next(filter(None, node.output), "")}"'


def _given(graph: GraphProto) -> list[str]:
    """Return the names of a graph's inputs and initializers; an initializer may be an input's default."""
    inputs = [value.name for value in graph.input]
    defaults = set(inputs)
    constants = [tensor.name for tensor in graph.initializer]
    constants += [sparse.values.name for sparse in graph.sparse_initializer]
    return inputs + [name for name in constants if name not in defaults]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def count_nodes(graph: GraphProto) -> int:
    """Return the number of nodes of a graph, those of bodies included."""
    return len(graph.node) + sum(count_nodes(body) for node in graph.node for body in subgraphs(node))


class _Fields(NamedTuple):
    """The fields of a message type that hold text or messages, one or several."""

    text: list[str]
    texts: list[str]
    child: list[str]
    children: list[str]


@functools.cache
def _fields(kind: Descriptor) -> _Fields:
    found = _Fields([], [], [], [])
    for field in kind.fields:  # ONNX is proto2, where all but repeated fields have presence
        if field.type == field.TYPE_STRING:
            (found.text if field.has_presence else found.texts).append(field.name)
        elif field.type == field.TYPE_MESSAGE:
            (found.child if field.has_presence else found.children).append(field.name)
    return found
