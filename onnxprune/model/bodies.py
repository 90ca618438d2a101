"""Move the nodes of If bodies into the main graph while it is worked on, and back to run it.

A graph without subgraphs can be traced, sliced and masked directly. `open_bodies` moves the nodes of every body before
its If, under unique names, each marked with its If and body, and makes the body's results inputs of the If.
`close_bodies` undoes this. Weights stay in the main graph, where a body may read them. Channels of
the results leave all bodies together; inside of a body they are as free as anywhere.

Bodies with inputs (of Loop, Scan, SequenceMap) run many times on different data and are left closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.model.checks import DEFAULT_DOMAINS, subgraphs
from onnxprune.model.graph import unique, with_nodes
from onnxprune.model.wire import copy_without

_KEY = "onnxprune.body"  # metadata of a node: the If's name, and which of its bodies the node belongs to
_SEPARATOR = "\n"


def open_bodies(nodes: Sequence[NodeProto], outside: Iterable[str]) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Move the nodes of all If bodies into the graph around them.

    Nodes and tensors of a body keep their names, unless these exist outside or in another body.

    Args:
        nodes: the nodes of the main graph, in order; they aren't changed.
        outside: the names of the main graph's inputs and initializers.

    Returns:
        The nodes, and the bodies' initializers by name.
    """
    if not any(map(_opens, nodes)):
        return list(nodes), {}
    taken = {*outside, *(o for node in nodes for o in node.output), *_names_within(nodes)}
    taken.update(node.name for node in nodes if not _opens(node))
    weights: dict[str, TensorProto] = {}
    return list(_opened(nodes, taken, weights)), weights


def close_bodies(model: ModelProto) -> ModelProto:
    """Return a model with the nodes of bodies moved back; a model without opened bodies is returned as it is."""
    nodes = model.graph.node
    if not any(map(is_open, nodes)):
        return model
    members: dict[str, list[NodeProto]] = {}
    for node in nodes:
        members.setdefault(_mark(node), []).append(node)
    opened = {node.name for node in nodes if is_open(node)}
    main = [n for n in nodes if _mark(n).partition(_SEPARATOR)[0] not in opened]
    return with_nodes(model, (_closed(node, members) for node in main))


def is_open(node: NodeProto) -> bool:
    """Whether a node is an If whose bodies are opened."""
    return node.op_type == "If" and node.domain in DEFAULT_DOMAINS and len(node.input) > 1


def results(node: NodeProto) -> Mapping[str, list[str]]:
    """Return the results of each body of an opened If, by the body's name."""
    names = iter(node.input[1:])
    return {a.name: [next(names) for _ in a.g.output] for a in node.attribute if a.HasField("g")}


def in_body(node: NodeProto) -> bool:
    """Whether a node belongs to a body: it may not run, or not on the shapes known."""
    return bool(_mark(node))


def mark_alike(node: NodeProto, others: Iterable[NodeProto]) -> None:
    """Mark nodes as belonging to the same body as another one."""
    mark = _mark(node)
    for other in others if mark else ():
        other.metadata_props.add(key=_KEY, value=mark)


def _opened(nodes: Iterable[NodeProto], taken: set[str], weights: dict[str, TensorProto]) -> Iterator[NodeProto]:
    for node in nodes:
        if not _opens(node):
            yield node
            continue
        control = copy_without(node, "name", "attribute")
        control.name = unique(node.name or f"If_{node.output[0]}", taken)
        control.attribute.extend(a for a in node.attribute if not a.HasField("g"))
        for attribute in (a for a in node.attribute if a.HasField("g")):
            body = GraphProto.FromString(attribute.g.SerializeToString())
            _rename(body, taken)
            weights |= {t.name: t for t in body.initializer}
            for inner in _opened(body.node, taken, weights):
                if not in_body(inner):
                    inner.metadata_props.add(key=_KEY, value=f"{control.name}{_SEPARATOR}{attribute.name}")
                yield inner
            control.input.extend(o.name for o in body.output)
            shell = copy_without(body, "node", "initializer", "value_info")
            control.attribute.append(AttributeProto(name=attribute.name, type=AttributeProto.GRAPH, g=shell))
        yield control


def _opens(node: NodeProto) -> bool:
    """Whether a node is an If with bodies that can be opened."""
    plain = node.op_type == "If" and node.domain in DEFAULT_DOMAINS and len(node.input) == 1
    return plain and not any(body.sparse_initializer for body in subgraphs(node))


def _names_within(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yield the names in bodies that stay closed, at any depth."""
    for node in nodes:
        for body in subgraphs(node):
            if not _opens(node):
                yield from (value.name for value in body.input)
                yield from (name for inner in body.node for name in inner.output)
            yield from _names_within(body.node)


def _rename(body: GraphProto, taken: set[str]) -> None:
    """Give a body's tensors and nodes unique names, also where bodies within it read them."""
    own = [t.name for t in body.initializer] + [o for n in body.node for o in n.output if o]
    names = {name: unique(name, taken) for name in own}
    for tensor in body.initializer:
        tensor.name = names[tensor.name]
    for node in body.node:
        if not _opens(node):  # otherwise it is named when it is opened
            node.name = unique(node.name or f"{node.op_type}_{next(filter(None, node.output), '')}", taken)
    _replace(body, names)


def _replace(graph: GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for inner in subgraphs(node):
            _replace(inner, names)
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _closed(node: NodeProto, members: Mapping[str, list[NodeProto]]) -> NodeProto:
    if not is_open(node):
        return _unmarked(node)
    control = copy_without(_unmarked(node), "input", "attribute")
    control.input.append(node.input[0])
    gives = results(node)
    for attribute in node.attribute:
        if not attribute.HasField("g"):
            control.attribute.append(attribute)
            continue
        body = GraphProto.FromString(attribute.g.SerializeToString())
        inside = members.get(f"{node.name}{_SEPARATOR}{attribute.name}", [])
        body.node.extend(_closed(inner, members) for inner in inside)
        made = {name for inner in inside for name in inner.output}
        for i, (output, name) in enumerate(zip(body.output, gives[attribute.name], strict=True)):
            output.name = name
            if name not in made:  # a result from outside of the body, or one returned twice, needs a node in it
                output.name = f"{name}::{attribute.name}{i}"
                body.node.append(helper.make_node("Identity", [name], [output.name], name=output.name))
            made.discard(name)
        control.attribute.append(AttributeProto(name=attribute.name, type=AttributeProto.GRAPH, g=body))
    return control


def _mark(node: NodeProto) -> str:
    return next((p.value for p in node.metadata_props if p.key == _KEY), "")


def _unmarked(node: NodeProto) -> NodeProto:
    copy = NodeProto.FromString(node.SerializeToString())
    for entry in [p for p in copy.metadata_props if p.key == _KEY]:
        copy.metadata_props.remove(entry)
    return copy
