"""Make the layers of a network sparse, one after the other.

As in a repair, inputs of each layer come from the network that is sparse so far, and targets from the dense one, so
that a layer makes up for the errors of those before it. Layers that stay dense are solved for as well.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import PlanError
from onnxprune.model.metadata import SPARSE, VERSION, sparse_weights, write_notes
from onnxprune.model.stream import Batches
from onnxprune.model.tensors import Weights
from onnxprune.planning.signature import fingerprints
from onnxprune.progress import Progress, silent
from onnxprune.recover.layers import LeftOut, LinearLayer, find_layers, left_out
from onnxprune.recover.lstsq import Evidence, Rows, reconstruct
from onnxprune.recover.regression import parameters, set_parameters
from onnxprune.recover.repair import solve_layers
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve
from onnxprune.settings.sparsity import Pattern
from onnxprune.sparsity.budget import by_magnitude, measure, spend
from onnxprune.sparsity.patterns import misfit
from onnxprune.sparsity.solve import Way, solve
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.version import __version__


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """A layer that was made sparse.

    Attributes:
        node: its name.
        operator: its operator.
        weight: its initializer.
        size: the number of its weights.
        zeros: how many of them are zero.
        already: how many of them were zero before.
        error: mean squared error of its output on held-back inputs, relative to the target's mean square; None without
            data.
    """

    node: str
    operator: str
    weight: str
    size: int
    zeros: int
    already: int
    error: float | None


@dataclass(frozen=True, slots=True)
class Sparse:
    """A network that was made sparse.

    Attributes:
        proto: the model.
        layers: its sparse layers, in topological order.
        dense: the other layers with weights, with the reasons.
        solved: the values that were solved for, by initializer.
        least: the zeros that each weight must have, by initializer.
    """

    proto: ModelProto
    layers: tuple[SparseLayer, ...]
    dense: tuple[LeftOut, ...]
    solved: Mapping[str, NDArray[Any]]
    least: Mapping[str, int]


def sparsify(
    kept: PrunedGraph,
    way: Way,
    share: float,
    batches: Batches | None,
    *,
    keep: Collection[str] = (),
    uniform: bool = False,
    curves: Sequence[Curve] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Sparse:
    """Return a traced network with weights set to zero.

    Args:
        kept: the network, perhaps without some channels. Targets are its outputs before these left.
        way: how a layer is made sparse.
        share: the share of zeros in all layers that the pattern fits; N:M has its own.
        batches: returns inputs; None for magnitude.
        keep: nodes that stay dense.
        uniform: whether all layers lose the same share.
        curves: sensitivities of `candidates`, measured before; needed if channels were removed.
        seed: of random choices.
        progress: called with phases and their parts.

    Raises:
        PlanError: the pattern fits no layer (OP310).
        ModelError: ONNX Runtime can't run a part of the model.
        UsageError: there are no inputs, or no output varies with them (OP604).
    """
    proto = rewrite(kept)
    weights = Weights(proto)
    layers, dense = candidates(kept.graph, proto, way, keep, runs=batches is not None)
    if not layers:
        cause = (
            f"the pattern {way.pattern} fits no layer: {dense[0].reason}"
            if dense
            else "no layer has weights of its own"
        )
        raise PlanError("OP310", cause)
    sizes = [prod(weights.shape(layer.weight)) for layer in layers]
    if batches is not None and not (way.pattern.of or uniform or curves):
        curves = measure(kept.graph, layers, batches, way, seed=seed, progress=progress)
    shares = share_out_zeros(layers, weights, way.pattern, share, curves, uniform=uniform)
    by_node = {layer.node.name: float(own) for layer, own in zip(layers, shares, strict=True)}
    before, already = fingerprints(proto), {layer.weight: _zeros(weights[layer.weight]) for layer in layers}
    errors: dict[str, float] = {}
    if batches is None:
        for layer in layers:
            found = solve(way, by_node[layer.node.name], layer, None, None, parameters(layer, weights))
            set_parameters(layer, weights, None, found)
    else:

        def fit(layer: LinearLayer, fitted: Evidence, held: Evidence, start: Rows) -> Rows:
            if layer.node.name in by_node:
                return solve(way, by_node[layer.node.name], layer, fitted, held, start)
            return reconstruct(fitted, held, start) if way.repair else start

        known = kept, proto, batches, fit, lambda layer: True
        repairs = solve_layers(*known, makes_up=way.repair, seed=seed, phase="sparsify", progress=progress)
        errors = {repair.node: repair.after for repair in repairs}
    changed = [name for name, now in fingerprints(proto).items() if now != before[name]]
    note_sparse(proto, [layer.weight for layer in layers if not weights[layer.weight].all()], way)
    return Sparse(
        proto,
        tuple(
            SparseLayer(
                node=layer.node.name,
                operator=layer.node.op_type,
                weight=layer.weight,
                size=size,
                zeros=_zeros(weights[layer.weight]),
                already=already[layer.weight],
                error=errors.get(layer.node.name),
            )
            for layer, size in zip(layers, sizes, strict=True)
        ),
        tuple(dense),
        {name: np.array(weights[name]) for name in changed},
        {layer.weight: _least(way, size, by_node[layer.node.name]) for layer, size in zip(layers, sizes, strict=True)},
    )


def share_out_zeros(
    layers: Sequence[LinearLayer],
    weights: Weights,
    pattern: Pattern,
    share: float,
    curves: Sequence[Curve] | None,
    *,
    uniform: bool,
) -> NDArray[np.float64]:
    """Return the share of zeros of each layer.

    Args:
        layers: the layers.
        weights: those of their model.
        pattern: where zeros may be; N:M has its own share.
        share: the share of zeros in all layers together.
        curves: their sensitivities; None for a budget by magnitude.
        uniform: whether all layers have the same share.
    """
    if pattern.of:
        return np.full(len(layers), 1 - pattern.keep / pattern.of)
    if uniform:
        return np.full(len(layers), share)
    if curves is None:
        return by_magnitude((weights[layer.weight] for layer in layers), share)
    return spend(curves, [prod(weights.shape(layer.weight)) for layer in layers], share)


def note_sparse(proto: ModelProto, weights: Sequence[str], way: Way) -> None:
    """Write into a model's metadata which initializers are sparse, and the pattern of each."""
    known = {**sparse_weights(proto), **dict.fromkeys(weights, str(way.pattern))}
    write_notes(proto, {VERSION: __version__, SPARSE: json.dumps(known, sort_keys=True)})


def candidates(
    graph: ChannelGraph, proto: ModelProto, way: Way, keep: Collection[str] = (), *, runs: bool = True
) -> tuple[list[LinearLayer], list[LeftOut]]:
    """Return the layers to make sparse, and those to leave dense with the reasons.

    Args:
        graph: the traced network.
        proto: its model.
        way: how layers are made sparse.
        keep: nodes that stay dense.
        runs: whether layers must run on data.
    """
    weights, found, dense = Weights(proto), list[LinearLayer](), list[LeftOut]()
    for layer in find_layers(proto):
        reason = _why_dense(graph, layer, weights, way, keep, runs)
        if reason is None:
            found.append(layer)
        else:
            dense.append(LeftOut(layer.node.name, layer.node.op_type, reason))
    others = left_out(proto, {name for node in proto.graph.node for name in node.input})
    order = {node.name: i for i, node in enumerate(proto.graph.node)}
    return found, sorted([*dense, *others], key=lambda one: order[one.node])


def _why_dense(
    graph: ChannelGraph, layer: LinearLayer, weights: Weights, way: Way, keep: Collection[str], runs: bool
) -> str | None:
    if layer.node.name in keep:
        return "it is kept, as asked for"
    if runs and layer.y in graph.unmade:
        return "ONNX Runtime can't run it, or a node in front of it"
    if not np.isfinite(weights[layer.weight].astype(np.float64)).all():
        return "a weight isn't finite"
    return misfit(way.pattern, layer, weights.shape(layer.weight))


def _zeros(array: NDArray[Any]) -> int:
    return array.size - int(np.count_nonzero(array))


def _least(way: Way, size: int, share: float) -> int:
    """Return how many zeros a weight must have."""
    if way.pattern.of:
        return size // way.pattern.of * (way.pattern.of - way.pattern.keep)
    block = way.pattern.rows * way.pattern.columns
    return round(share * (size // block)) * block
