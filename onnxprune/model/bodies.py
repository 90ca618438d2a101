"""Move the nodes of bodies (of If, Loop, Scan) into the main graph while it is worked on, and back to run it.

A graph without subgraphs can be traced, sliced and masked directly. `open_bodies` moves the nodes of every body before
its node, under unique names, each marked with its node and body, and makes the body's results inputs of the node.
A body of Loop or Scan runs many times on inputs of its own. A node *BodyInputs* in front of it reads what the Loop or
Scan reads, and gives the body's inputs; the Loop or Scan then reads these and the results, where a state that goes into
a step meets the one that comes out. `close_bodies` undoes all this. Weights stay in the main graph, where any body may
read them, also one that isn't opened (of SequenceMap, and of Scan before opset 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.model.checks import DEFAULT_DOMAINS, subgraphs
from onnxprune.model.graph import attribute as attribute_of, unique, with_nodes
from onnxprune.model.wire import copy_without

_KEY = "onnxprune.body"  # metadata of a node: the If's name, and which of its bodies the node belongs to
_SEPARATOR = "\n"
_INPUTS = "inputs"  # the part of a mark that stands for the BodyInputs of a Loop or Scan
_DOMAIN, _BODY_INPUTS = "onnxprune", "BodyInputs"

BODY_INPUTS = f"{_DOMAIN}:{_BODY_INPUTS}"
"""The operator that gives the inputs of an opened body. Its attributes: `counters`, the ranks of the inputs that aren't
states (a Loop's step number and condition), and `axes`, those along which the last inputs are sliced, one each."""


def open_bodies(nodes: Sequence[NodeProto], outside: Iterable[str]) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Move the nodes of all bodies of If, Loop and Scan into the graph around them, and the weights of all bodies.

    Nodes and tensors of a body keep their names, unless these exist outside or in another body.

    Args:
        nodes: the nodes of the main graph, in order; they aren't changed.
        outside: the names of the main graph's inputs and initializers.

    Returns:
        The nodes, and the bodies' initializers by name.
    """
    if not any(True for node in nodes if not is_open(node) for _ in subgraphs(node)):
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


def reopened(model: ModelProto) -> ModelProto:
    """Return a model with its bodies opened, as a normalized one has them."""
    graph = model.graph
    outside = {*(t.name for t in graph.initializer), *(i.name for i in graph.input)}
    nodes, weights = open_bodies(graph.node, outside)
    tensors = [TensorProto(name=name) for name in weights]
    for tensor, source in zip(tensors, weights.values(), strict=True):
        tensor.MergeFrom(copy_without(source, "name"))
    return with_nodes(model, nodes, [*graph.initializer, *tensors])


def is_open(node: NodeProto) -> bool:
    """Whether a node is an If, Loop or Scan whose bodies are opened."""
    if not _is_control(node):
        return False
    heads = [] if node.op_type == "If" else [value.name for body in subgraphs(node) for value in body.input]
    whole = head_count(node) + sum(len(body.output) for body in subgraphs(node))
    return len(node.input) == whole and list(node.input[: len(heads)]) == heads


def is_body_input(node: NodeProto) -> bool:
    """Whether a node gives the inputs of an opened body."""
    return node.op_type == _BODY_INPUTS and node.domain == _DOMAIN


def head_count(node: NodeProto) -> int:
    """Return how many inputs of an opened node come before the bodies' results: a condition, or the body's inputs."""
    return 1 if node.op_type == "If" else sum(len(body.input) for body in subgraphs(node))


def results(node: NodeProto) -> Mapping[str, list[str]]:
    """Return the results of each body of an opened node, by the body's name."""
    names = iter(node.input[head_count(node) :])
    return {a.name: [next(names) for _ in a.g.output] for a in node.attribute if a.HasField("g")}


def carried(node: NodeProto) -> list[tuple[int, int, int]]:
    """Return the states of an opened Loop or Scan: input before a step, input after it, output, each by number."""
    counters, results = (2, 1) if node.op_type == "Loop" else (0, 0)
    heads = head_count(node)
    count = heads - counters - (0 if counters else attribute_of(node, "num_scan_inputs", 0))
    return [(counters + i, heads + results + i, i) for i in range(count)]


def stacked(node: NodeProto) -> list[tuple[int, int, int]]:
    """Return what an opened Loop or Scan stacks up: input of a step's result, output, and the axis of the steps.

    The axis may be negative.
    """
    count = len(carried(node))
    first = head_count(node) + (node.op_type == "Loop") + count
    axes = attribute_of(node, "scan_output_axes") or [0] * (len(node.input) - first)
    return [(first + i, count + i, axis) for i, axis in enumerate(axes[: len(node.input) - first])]


def in_body(node: NodeProto) -> bool:
    """Whether a node belongs to a body: it may not run, or many times, or not on the shapes known."""
    return bool(_mark(node))


def mark_of(node: NodeProto, body: str | None = None) -> str:
    """Return the key of the body that a node belongs to, "" for the main graph; or of a body of an opened node."""
    return _mark(node) if body is None else f"{node.name}{_SEPARATOR}{body}"


def loops_around(nodes: Sequence[NodeProto]) -> list[tuple[str, ...]]:
    """Return the names of the opened Loops and Scans that each node is inside of."""
    around = {node.name: _mark(node).partition(_SEPARATOR)[0] for node in nodes if is_open(node)}
    loops = {node.name for node in nodes if is_open(node) and node.op_type != "If"}

    def chain(name: str) -> Iterator[str]:
        for _ in around:
            if name in around:
                yield name
                name = around[name]

    return [tuple(n for n in chain(_mark(node).partition(_SEPARATOR)[0]) if n in loops) for node in nodes]


def mark_alike(node: NodeProto, others: Iterable[NodeProto]) -> None:
    """Mark nodes as belonging to the same body as another one."""
    mark = _mark(node)
    for other in others if mark else ():
        other.metadata_props.add(key=_KEY, value=mark)


def unmarked(node: NodeProto) -> NodeProto:
    """Return a copy of a node that belongs to no body."""
    copy = NodeProto.FromString(node.SerializeToString())
    for entry in [p for p in copy.metadata_props if p.key == _KEY]:
        copy.metadata_props.remove(entry)
    return copy


def _opened(nodes: Iterable[NodeProto], taken: set[str], weights: dict[str, TensorProto]) -> Iterator[NodeProto]:
    for node in nodes:
        if not _opens(node):
            yield _hoisted(node, taken, weights) if not is_open(node) and any(True for _ in subgraphs(node)) else node
            continue
        control = copy_without(node, "name", "input", "attribute")
        control.name = unique(node.name or f"{node.op_type}_{next(filter(None, node.output), '')}", taken)
        control.attribute.extend(a for a in node.attribute if not a.HasField("g"))
        control.input.extend(node.input if node.op_type == "If" else ())
        for attribute in (a for a in node.attribute if a.HasField("g")):
            body = GraphProto.FromString(attribute.g.SerializeToString())
            _rename(body, taken)
            weights |= {t.name: t for t in body.initializer}
            if node.op_type != "If":
                control.input.extend(value.name for value in body.input)
                yield _inputs(node, control.name, body, taken)
            for inner in _opened(body.node, taken, weights):
                if not in_body(inner):
                    _set_mark(inner, control.name, attribute.name)
                yield inner
            control.input.extend(o.name for o in body.output)
            shell = copy_without(body, "node", "initializer", "value_info")
            control.attribute.append(AttributeProto(name=attribute.name, type=AttributeProto.GRAPH, g=shell))
        yield control


def _inputs(node: NodeProto, name: str, body: GraphProto, taken: set[str]) -> NodeProto:
    """Return the node that gives the inputs of a Loop's or Scan's body."""
    gives = [value.name for value in body.input]
    own = unique(f"{name}::{_INPUTS}", taken)
    made = helper.make_node(_BODY_INPUTS, _all_inputs(node), gives, name=own, domain=_DOMAIN)
    if node.op_type == "Loop":
        counters, axes = [len(value.type.tensor_type.shape.dim) for value in body.input[:2]], []
    else:
        count = attribute_of(node, "num_scan_inputs", 0)
        counters, axes = [], list(attribute_of(node, "scan_input_axes") or [0] * count)
    for key, numbers in (("counters", counters), ("axes", axes)):
        made.attribute.append(AttributeProto(name=key, type=AttributeProto.INTS, ints=numbers))
    _set_mark(made, name, _INPUTS)
    return made


def _all_inputs(node: NodeProto) -> list[str]:
    """Return a node's inputs; a Loop's count and condition are optional and may be missing at the end."""
    return [*node.input, *[""] * ((2 if node.op_type == "Loop" else 0) - len(node.input))]


def _opens(node: NodeProto) -> bool:
    """Whether a node is an If, Loop or Scan with bodies that can be opened."""
    bodies = list(subgraphs(node))
    if not _is_control(node) or is_open(node) or any(body.sparse_initializer for body in bodies):
        return False
    if node.op_type == "If":
        return len(node.input) == 1
    given = [v.name for body in bodies for v in body.input] + [t.name for body in bodies for t in body.initializer]
    fits = len(bodies) == 1 and len(_all_inputs(node)) == len(bodies[0].input) and len(set(given)) == len(given)
    counters, sliced = (2, 0) if node.op_type == "Loop" else (0, attribute_of(node, "num_scan_inputs", 0))
    axes = attribute_of(node, "scan_input_axes") or [0] * max(sliced, 0)
    states = len(node.input) - counters - sliced
    carried = len(bodies[0].output) - (1 if counters else 0) if fits else -1
    return fits and len(axes) == sliced >= 0 and (states >= 0 or bool(counters)) and carried >= max(states, 0)


def _is_control(node: NodeProto) -> bool:
    return (
        node.op_type in ("If", "Loop", "Scan") and node.domain in DEFAULT_DOMAINS and any(True for _ in subgraphs(node))
    )


def _hoisted(node: NodeProto, taken: set[str], weights: dict[str, TensorProto]) -> NodeProto:
    """Return a node whose bodies stay closed, with the weights of these moved to the main graph."""
    copy = NodeProto.FromString(node.SerializeToString())
    for body in subgraphs(copy):
        inputs = {value.name for value in body.input}
        own = [t for t in body.initializer if t.name not in inputs]
        names = {t.name: unique(t.name, taken) for t in own}
        weights |= {names[t.name]: TensorProto.FromString(t.SerializeToString()) for t in own}
        stay = [t for t in body.initializer if t.name in inputs]
        del body.initializer[:]
        body.initializer.extend(stay)
        rename_tensors(body, names)
        inner = [_hoisted(n, taken, weights) if any(True for _ in subgraphs(n)) else n for n in body.node]
        kept = [NodeProto.FromString(n.SerializeToString()) for n in inner]
        del body.node[:]
        body.node.extend(kept)
    return copy


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
    names = {name: unique(name, taken) for name in _own_names(body)}
    for tensor in body.initializer:
        tensor.name = names[tensor.name]
    for node in body.node:
        if not _opens(node):  # otherwise it is named when it is opened
            node.name = unique(node.name or f"{node.op_type}_{next(filter(None, node.output), '')}", taken)
    rename_tensors(body, names)


def _own_names(body: GraphProto) -> list[str]:
    """Return the tensors that a body defines."""
    made = [o for n in body.node for o in n.output if o]
    return list(dict.fromkeys([*(v.name for v in body.input), *(t.name for t in body.initializer), *made]))


def rename_tensors(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph, also where bodies within it read them."""
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for inner in subgraphs(node):
            own = set(_own_names(inner))  # some exporters use a name again inside
            rename_tensors(inner, {name: new for name, new in names.items() if name not in own})
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _closed(node: NodeProto, members: Mapping[str, list[NodeProto]]) -> NodeProto:
    if not is_open(node):
        return unmarked(node)
    control = copy_without(unmarked(node), "input", "attribute")
    gives = results(node)
    own = members.get(f"{node.name}{_SEPARATOR}{_INPUTS}", [])
    control.input.extend(own[0].input if own else node.input[:1])
    for attribute in node.attribute:
        if not attribute.HasField("g"):
            control.attribute.append(attribute)
            continue
        body = GraphProto.FromString(attribute.g.SerializeToString())
        inside = members.get(f"{node.name}{_SEPARATOR}{attribute.name}", [])
        body.node.extend(_closed(inner, members) for inner in inside)
        made = {name for inner in inside for name in inner.output}
        for value, name in zip(body.input, own[0].output if own else (), strict=True):
            value.name = name
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


def _set_mark(node: NodeProto, control: str, body: str) -> None:
    node.metadata_props.add(key=_KEY, value=f"{control}{_SEPARATOR}{body}")
