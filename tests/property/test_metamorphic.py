"""Changes to a model that mean nothing must change nothing; removals in two steps are one removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings, strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.checks import captured_names, subgraphs
from onnxprune.model.graph import attribute
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.nets import Sample, samples
from tests.toolbox import (
    analyze,
    inputs_of,
    removal,
    run_once,
    snapshot,
)

FEW = settings(max_examples=30)
Change = Callable[[ModelProto, np.random.Generator], dict[str, str]]


def renamed(model: ModelProto, rng: np.random.Generator) -> dict[str, str]:
    """Give every node, and every tensor but inputs and outputs, another name."""
    graph = model.graph
    fixed = {v.name for v in [*graph.input, *graph.output]}
    tensors = {n for node in graph.node for n in [*node.input, *node.output] if n} | {t.name for t in graph.initializer}
    inner = sorted(tensors - fixed)
    new = dict(zip(inner, (f"t{i}" for i in rng.permutation(len(inner))), strict=True))
    for node, index in zip(graph.node, rng.permutation(len(graph.node)), strict=True):
        node.name = f"node {index}"
        _rename(node, new)
    for tensor in graph.initializer:
        tensor.name = new[tensor.name]
    return {new: old for old, new in new.items()}


def _rename(node: NodeProto, new: Mapping[str, str]) -> None:
    """Rename a node's tensors, and what its bodies read of them."""
    node.input[:] = [new.get(n, n) for n in node.input]
    node.output[:] = [new.get(n, n) for n in node.output]
    for body in subgraphs(node):
        for inner in body.node:
            _rename(inner, new)


def reordered(model: ModelProto, rng: np.random.Generator) -> dict[str, str]:
    """Put the nodes in another topological order."""
    waiting = list(model.graph.node)
    known = {t.name for t in model.graph.initializer} | {i.name for i in model.graph.input} | {""}
    order: list[NodeProto] = []
    while waiting:
        ready = [i for i, node in enumerate(waiting) if known.issuperset({*node.input} | captured_names(node))]
        node = waiting.pop(ready[rng.integers(len(ready))])
        known.update(node.output)
        order.append(node)
    _set_nodes(model, order)
    return {}


def with_identities(model: ModelProto, rng: np.random.Generator) -> dict[str, str]:
    """Insert Identity nodes on a third of all edges, also on those from weights."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name and rng.random() < 1 / 3:
                copy = f"{name}::{node.name}:{i}"
                nodes.append(helper.make_node("Identity", [name], [copy], name=f"identity {copy}"))
                node.input[i] = copy
        nodes.append(node)
    _set_nodes(model, nodes)
    return {}


def with_constant_nodes(model: ModelProto, rng: np.random.Generator) -> dict[str, str]:
    """Turn half of the initializers into Constant nodes."""
    tensors = list(model.graph.initializer)
    chosen = [t for t in tensors if rng.random() < 1 / 2]
    constants = [helper.make_node("Constant", [], [t.name], name=f"constant {t.name}", value=t) for t in chosen]
    del model.graph.initializer[:]
    model.graph.initializer.extend(t for t in tensors if t not in chosen)
    _set_nodes(model, [*constants, *model.graph.node])
    return {}


def with_inputs_for_weights(model: ModelProto, rng: np.random.Generator) -> dict[str, str]:
    """List the initializers among the inputs, as IR version 3 asks."""
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return {}


def _set_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


CHANGES: tuple[Change, ...] = (renamed, reordered, with_identities, with_constant_nodes, with_inputs_for_weights)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_meaningless_changes_keep_the_groups(change: Change) -> None:
    @FEW
    @given(samples(most=8), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        other = ModelProto()
        other.CopyFrom(sample.model)
        names = change(other, np.random.default_rng(seed))
        onnx.checker.check_model(other, full_check=True)
        before, after = (analyze(m, sample.shapes) for m in (sample.model, other))
        assert snapshot(after, names) == snapshot(before)

    inner()


def test_a_meaningful_change_does_not() -> None:
    """The snapshots aren't equal by construction: one Relu less is nothing, one Add less is."""

    @FEW
    @given(samples(first="combine", most=3))
    def inner(sample: Sample) -> None:
        adds = [n for n in sample.model.graph.node if n.op_type in ("Add", "Sub", "Mean", "Sum") and len(n.input) == 2]
        weights = {t.name for t in sample.model.graph.initializer}
        adds = [n for n in adds if weights.isdisjoint(n.input)]
        before = snapshot(analyze(sample.model, sample.shapes))
        if adds and before:
            other = ModelProto()
            other.CopyFrom(sample.model)
            node = next(n for n in other.graph.node if n.name == adds[0].name)
            node.op_type = "Identity"
            del node.input[1]
            found.append(snapshot(analyze(other, sample.shapes)) != before)

    found: list[bool] = []
    inner()
    assert len(found) > 5
    assert sum(found) > len(found) / 2


@FEW
@given(samples(most=8), st.integers(0, 2**16))
def test_two_removals_are_one(sample: Sample, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = analyze(sample.model, sample.shapes)
    both = removal(graph.groups, graph, rng)
    first = _part(both, rng)
    once = rewrite(both)
    halfway = rewrite(first)
    between = analyze(halfway, sample.shapes)
    # Groups of a convolution that came down to a single channel leave as a whole from then on.
    assume(_single_channel_groups(between) == _single_channel_groups(graph))
    twice = rewrite(PrunedGraph(between, _carried_over(both, first, between)))
    assert _weights(twice) == _weights(once)
    outputs = [run_once(m, inputs_of(graph)) for m in (once, twice)]
    assert all(np.array_equal(outputs[0][n], outputs[1][n], equal_nan=True) for n in outputs[0])


def _single_channel_groups(graph: ChannelGraph) -> set[str]:
    """Return the convolutions whose groups have a single channel on either side."""
    found = set()
    for node in graph.proto.graph.node:
        groups = attribute(node, "group", 1)
        shapes = [graph.shapes.shapes.get(name, ()) for name in (node.input[0], node.output[0])]
        if groups > 1 and any(len(shape) > 1 and shape[1] == groups for shape in shapes):
            found.add(node.name)
    return found


def _part(both: PrunedGraph, rng: np.random.Generator) -> PrunedGraph:
    """Take about half of a removal, whole sets of units that leave together."""
    removed = np.zeros_like(both.removed)
    for group in both.graph.groups:
        gone = both.removed[group.units]
        dealt = group.deal(np.where(gone, 0.0, 1.0))
        whole = dealt[gone[dealt].all(axis=1)]
        removed[group.units[whole[rng.random(len(whole)) < 0.5]]] = True
    return PrunedGraph(both.graph, removed)


def _carried_over(both: PrunedGraph, first: PrunedGraph, between: ChannelGraph) -> np.ndarray:
    """Find the units of a model pruned halfway that are still to go, by their places in the original."""
    removed = np.zeros(len(between.pinned), dtype=bool)
    gone = first.positions()
    for name, axes in both.positions().items():
        for axis, positions in axes.items():
            earlier = gone.get(name, {}).get(axis, np.empty(0, np.int64))
            rest = np.setdiff1d(positions, earlier)
            left = rest - np.searchsorted(earlier, rest)
            if len(left):
                removed[between.unit_of[between.slots[name, axis][left]]] = True
    return removed


def _weights(model: ModelProto) -> dict[str, bytes]:
    """Return the float initializers, copies of vectors under the name of what they were copied from.

    The names of adapted parameters depend on how often they were adapted; and a matrix that came down to a vector in
    the first step is copied for each of its readers in the second.
    """
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {n.partition("::")[0]: a.tobytes() for n, a in arrays.items() if a.dtype == np.float32}


@FEW
@given(samples(most=8))
def test_an_empty_removal_keeps_every_bit(sample: Sample) -> None:
    graph = analyze(sample.model, sample.shapes)
    pruned = rewrite(PrunedGraph(graph))
    inputs = inputs_of(graph)
    for optimize in (False, True):
        before, after = (run_once(m, inputs, optimize=optimize) for m in (sample.model, pruned))
        assert list(before) == list(after)
        assert all(before[n].tobytes() == after[n].tobytes() for n in before)
