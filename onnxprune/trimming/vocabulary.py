"""Trim a vocabulary to a list of tokens: rows of the embedding and of the layer that makes the logits leave.

These rows are units like any others, which the trace pins because users choose ids and read logits by position. Here
the user names the positions, so these pins don't count. What the rows are coupled to leaves with them: tied weights,
scales, biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.channels.values import Ids
from onnxprune.errors import PlanError
from onnxprune.model.graph import OF_SHAPE, GraphIndex, names_in, reads, unique, with_inputs, with_nodes
from onnxprune.operators.card import card_of
from onnxprune.operators.node import Node
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.sound import check_sound
from onnxprune.shapes import generate_inputs
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.trace.solve import solve
from onnxprune.trimming.proof import Arrays, Trimmed, compare

_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_INDICES = 1  # the input of a lookup that holds ids


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Where token ids are read and made.

    Attributes:
        size: the number of tokens.
        lookups: the nodes that look up rows, by name.
        inputs: the graph inputs that hold token ids.
        logits: the outputs with a number for each token on their last axis.
        ids: the channel ids of the tokens, a row for each table and output, shape (n, size).
    """

    size: int
    lookups: dict[str, NodeProto]
    inputs: tuple[str, ...]
    logits: tuple[str, ...]
    ids: Ids


def trim_vocabulary(
    graph: ChannelGraph,
    tokens: Sequence[int],
    *,
    keep_ids: bool = False,
    inputs: Arrays | None = None,
    seed: int = 0,
) -> Trimmed:
    """Return a model that knows a part of its tokens only, numbered anew in their old order.

    Args:
        graph: the traced model.
        tokens: the ids to keep.
        keep_ids: whether the model still takes old ids, and its logits still have a place for every old id: that of a
            removed token holds minus infinity. A removed id is read as the first one that is kept.
        inputs: inputs for the proof, with old ids that are kept; generated ones by default.
        seed: seed of generated inputs.

    Raises:
        PlanError: no table is looked up by an input's ids, ids are used otherwise, or rows can't leave (OP318).
        VerificationError: the result doesn't compute the same for the tokens that are kept (OP501).
        ModelError: the model can't be run.
    """
    found = _find(graph, keep_ids=keep_ids)
    kept = np.unique(np.asarray(tokens, dtype=np.int64))
    if len(kept) < 2 or kept[0] < 0 or kept[-1] >= found.size:
        cause = f"the list must name at least two of the ids from 0 to {found.size - 1}"
        raise PlanError("OP318", cause, where="vocabulary")
    pruned = _without(graph, found, np.setdiff1d(np.arange(found.size), kept))
    trimmed = rewrite(pruned)
    for value in trimmed.graph.output:
        if value.name in found.logits and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[-1].dim_value = len(kept)
    check_sound(pruned, trimmed)
    place = np.zeros(found.size, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    if keep_ids:
        trimmed = _renumbering(trimmed, graph, found, place, kept)
    data, given = _inputs(graph, found, kept, None if keep_ids else place, inputs, seed)
    gone = np.isin(np.arange(found.size), kept, invert=True)

    def left(name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name not in found.logits:
            return value
        return np.where(gone, -np.inf, value).astype(value.dtype) if keep_ids else value[..., kept]

    error = compare(graph.proto, trimmed, data, given, left)
    names = ", ".join(f'"{name}"' for name in (*found.inputs, *found.logits))
    what = f"{len(kept)} of {found.size} tokens are kept ({names})"
    return Trimmed(trimmed, what, error, given, {int(old): new for new, old in enumerate(kept)})


def _find(graph: ChannelGraph, *, keep_ids: bool) -> _Vocabulary:
    """Find the largest table that is looked up by ids of a graph input, and the outputs with as many logits."""
    index = GraphIndex(graph.proto.graph)
    entries = {entry.name for entry in graph.proto.graph.input} - index.initializers.keys()
    tables: list[tuple[int, NodeProto, str, Ids]] = []
    for node in index.nodes:
        table = card_of(node.domain, node.op_type).table
        value = None if table is None else graph.values.get(node.input[table])
        if value is None or not value.constant or Node(node).attr("axis", 0) or len(node.input) <= _INDICES:
            continue
        source, rows = index.source(node.input[_INDICES], _MOVES), value.on(0)
        if source in entries and rows is not None and rows.axes == (0,):
            tables.append((len(rows.ids), node, source, graph.unit_of[rows.ids]))
    if not tables:
        cause = "the vocabulary can't be trimmed: no table is looked up by the ids of an input"
        raise PlanError("OP318", cause, hint="the command `explain MODEL OP205` shows what is looked up")
    size = max(rows for rows, *_ in tables)
    largest = [table for table in tables if table[0] == size]
    sources = tuple(dict.fromkeys(source for _, _, source, _ in largest))
    if len(sources) > 1 and any(not np.array_equal(units, largest[0][3]) for *_, units in largest):
        cause = f"the vocabulary can't be trimmed: inputs {', '.join(sources)} look up different tables of {size} rows"
        raise PlanError("OP318", cause)
    lookups = {node.name: node for _, node, _, _ in largest}
    if not keep_ids:
        _only_looked_up(sources, lookups, index)
    logits, ids = [], [_rows(graph, node) for node in lookups.values()]
    for output in index.outputs:
        value = graph.values.get(output)
        factor = None if value is None else value.on(len(value.shape) - 1)
        if factor is not None and factor.ids.shape == (size,):
            logits.append(output)
            ids.append(factor.ids)
    return _Vocabulary(size, lookups, sources, tuple(logits), np.stack(ids))


def _rows(graph: ChannelGraph, node: NodeProto) -> Ids:
    """Return the channel ids of the rows of a lookup's table."""
    table = card_of(node.domain, node.op_type).table
    factor = None if table is None else graph.values[node.input[table]].on(0)
    assert factor is not None
    return factor.ids


def _only_looked_up(sources: Sequence[str], lookups: dict[str, NodeProto], index: GraphIndex) -> None:
    """Check that ids are used for looking up rows only: anything else would see new ids.

    Raises:
        PlanError: something else reads them (OP318).
    """
    held = set(sources)
    for node in index.nodes:
        if held.isdisjoint(reads(node)) or node.name in lookups or node.op_type in OF_SHAPE:
            continue
        if node.op_type not in _MOVES or not held.isdisjoint(node.input[1:]):
            cause = "the vocabulary can't be trimmed: token ids are also read by other nodes than the embedding"
            hint = "set `keep_token_ids`, so that the model still takes the old ids"
            raise PlanError("OP318", cause, where=Node(node).label, hint=hint)
        held.update(node.output)


def _without(graph: ChannelGraph, found: _Vocabulary, gone: Ids) -> PrunedGraph:
    """Return the traced model without some tokens.

    Raises:
        PlanError: their rows can't leave, or only with others (OP318).
    """
    lifted = {("OP202", f'graph output "{name}"') for name in found.logits}
    lifted |= {("OP205", Node(node).label) for node in found.lookups.values()}
    mine, ledger = np.unique(found.ids), graph.ledger
    pins = [(ids[~np.isin(ids, mine)] if (pin.code, pin.node) in lifted else ids, pin) for ids, pin in ledger.pins]
    free = solve(*(graph.proto, graph.shapes, graph.values, replace(ledger, pins=pins), graph.policies, graph.states))
    units = free.unit_of[found.ids]
    removed = np.zeros(free.unit_count, dtype=bool)
    removed[units[:, gone]] = True
    if stuck := np.flatnonzero(removed & free.pinned).tolist():
        pin = free.pins(stuck[0])[0]
        cause = f"the vocabulary can't be trimmed: {pin.reason} ({pin.code})"
        raise PlanError("OP318", cause, where=pin.node)
    if removed[np.delete(units, gone, axis=1)].any():
        raise PlanError("OP318", "the vocabulary can't be trimmed: tokens to remove are coupled to others")
    return PrunedGraph(free, removed)


def _renumbering(proto: ModelProto, graph: ChannelGraph, found: _Vocabulary, place: Ids, kept: Ids) -> ModelProto:
    """Return a trimmed model that takes old ids, and gives logits for them."""
    taken = names_in(proto.graph)
    constants: dict[str, NDArray[Any]] = {}

    def constant(name: str, value: NDArray[Any]) -> str:
        constants[made := unique(name, taken)] = value
        return made

    def gather(data: str, indices: str, name: str, axis: int = 0) -> NodeProto:
        made = unique(name, taken)
        return helper.make_node("Gather", [data, indices], [made], name=unique(f"{made}/Gather", taken), axis=axis)

    inner = {name: unique(f"{name}_kept", taken) for name in found.logits}
    table = constant("token_ids", place)
    is_kept = constant("token_is_kept", np.isin(np.arange(found.size), kept))

    def nodes() -> Iterator[NodeProto]:
        for source in proto.graph.node:
            node = with_inputs(source, (inner.get(name, name) for name in source.input))
            node.output[:] = [inner.get(name, name) for name in node.output]
            if source.name in found.lookups:
                ids = node.input[_INDICES]
                new = gather(table, ids, f"{ids}_new")
                yield new
                node.input[_INDICES] = new.output[0]
            yield node
        for name in found.logits:
            spread = gather(inner[name], table, f"{name}_spread", axis=-1)
            dtype = tensor_dtype_to_np_dtype(graph.shapes.types[name])
            least = constant(f"{name}_least", np.array(-np.inf, dtype=dtype))
            yield spread
            yield helper.make_node(
                "Where", [is_kept, spread.output[0], least], [name], name=unique(f"{name}/Where", taken)
            )

    result = with_nodes(proto, nodes())
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for value in result.graph.output:
        if value.name in found.logits and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[-1].dim_value = found.size
    return result


def _inputs(
    graph: ChannelGraph, found: _Vocabulary, kept: Ids, place: Ids | None, inputs: Arrays | None, seed: int
) -> tuple[Arrays, Arrays]:
    """Return inputs for the original, and the same for the trimmed model, with new ids if there are any."""
    if inputs is None:
        rng, data = np.random.default_rng(seed), generate_inputs(graph.proto, graph.shapes.inputs, seed)
        data |= {n: rng.choice(kept, data[n].shape).astype(data[n].dtype) for n in found.inputs}
    else:
        data = dict(inputs)
        for name in found.inputs:
            if not np.isin(data[name], kept).all():
                raise PlanError("OP318", "the inputs for the proof hold ids that aren't kept", where=f'input "{name}"')
    if place is None:
        return data, data
    return data, {**data, **{name: place[data[name]].astype(data[name].dtype) for name in found.inputs}}
