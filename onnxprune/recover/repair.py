"""Repair a pruned network from unlabeled inputs, layer by layer, without gradients.

Inputs of each layer come from the network as pruned and repaired so far, targets from the original, so that a layer
makes up for the errors of those before it (He, Zhang and Sun, "Channel pruning for accelerating very deep neural
networks", ICCV 2017). So do the layers behind a residual block that was removed: their targets are those with the
block. Activations are kept at the current layer only, as running moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.cost.cost import Cost
from onnxprune.errors import UsageError
from onnxprune.model.bodies import reopened
from onnxprune.model.checks import subgraphs
from onnxprune.model.graph import GraphIndex
from onnxprune.model.metadata import sparse_weights
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches, Inputs, Stream
from onnxprune.model.tensors import Weights
from onnxprune.progress import Progress, silent
from onnxprune.recover.held_back import parts
from onnxprune.recover.layers import LeftOut, LinearLayer, find_layers, left_out
from onnxprune.recover.logits import Logits, narrowed
from onnxprune.recover.lstsq import Evidence, Mask, Rows, evidence, reconstruct, rescale, shift
from onnxprune.recover.pairs import PairedLayers, of_rank, paired
from onnxprune.recover.regression import (
    LayerIndex,
    RegressionTarget,
    intercept_place,
    own_output,
    parameters,
    scale_behind,
    set_parameters,
    target_of,
)
from onnxprune.settings.pruning import Method
from onnxprune.trace.pruned_graph import PrunedGraph

Fit = Callable[[LinearLayer, Evidence, Evidence, Rows], Rows]
"""Returns a layer's weights, given it, the moments to fit, those held back, and the weights that it has."""

_FITS: Mapping[Method, Callable[[Evidence, Evidence, Rows], Rows]] = {
    "bias": shift,
    "bn": rescale,
    "reconstruct": reconstruct,
}

# Methods that can make up for another branch's errors. Matching the variance of these would only add to them.
_MAKE_UP: tuple[Method, ...] = ("bias", "reconstruct")
# Output positions sampled per 32 samples: enough for stable moments, few enough to be fast. A batch size fixed to 1
# makes as many batches as there are samples; each gives at least some, for the sake of few samples. Layers with few
# features per group, as depthwise ones, need fewer.
_POSITIONS = 4096
_PER, _FEWEST = 32, 256
_PER_FEATURE, _ALWAYS = 32, 512
_RUNS = 5.0  # of the model for a sample, without the sums


@dataclass(frozen=True, slots=True)
class Repair:
    """The repair of one layer.

    Attributes:
        node: the layer's name.
        before: mean squared error of its output on held-back inputs, relative to the target's mean square.
        after: the same after the repair.
    """

    node: str
    before: float
    after: float


def recover(
    kept: PrunedGraph,
    pruned: ModelProto,
    batches: Batches,
    *,
    method: Method = "reconstruct",
    seed: int = 0,
    positions: int = _POSITIONS,
    teacher: ModelProto | None = None,
    records: Records | None = None,
    name: str = "",
    progress: Progress = silent,
) -> list[Repair]:
    """Repair a pruned model in place.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the rewritten model; its weights change, its shapes don't.
        batches: returns the inputs; the same ones at each call.
        method: "reconstruct" refits all weights by least squares, "bn" a scale and an intercept for each output, "bias"
            the intercepts only.
        seed: of the random choice of output positions.
        positions: the number of output positions sampled from 32 samples.
        teacher: the network whose tensors are the targets, if the traced one, with all blocks, isn't: it has one layer
            where that has two with fewer channels between (`onnxprune.recover.pairs`). Their repair is one, and comes
            in any case.
        records: the layers that are done already; filled as others are.
        name: the name of this repair in the records.
        progress: called with the layers that are done.

    Returns:
        The error of every repaired layer before and after.

    Raises:
        ModelError: ONNX Runtime can't run a part of a model.
        UsageError: there are no inputs (OP604).
    """
    changed, sparse = _changed_tensors(kept, pruned, teacher), sparse_weights(pruned)
    index = LayerIndex(pruned, {}, kept.graph.shapes.shapes)

    def fit(layer: LinearLayer, fitted: Evidence, held: Evidence, start: Rows) -> Rows:
        if isinstance(layer, PairedLayers) and method == "reconstruct":
            rank, scale = layer.rank(index.weights), scale_behind(layer, index)
            return reconstruct(fitted, held, start, limited=lambda full: of_rank(full, rank, fitted, scale))
        mask = _zeros_kept(start) if layer.weight in sparse else None
        return reconstruct(fitted, held, start, mask) if method == "reconstruct" else _FITS[method](fitted, held, start)

    makes_up = method in _MAKE_UP
    options: Any = {"seed": seed, "positions": positions, "records": records, "name": name, "progress": progress}

    def wanted(layer: LinearLayer) -> bool:
        return layer.x in changed or isinstance(layer, PairedLayers)

    if method == "reconstruct":
        options["narrowed"] = narrowed(kept, pruned)
    return solve_layers(kept, pruned, batches, fit, wanted, makes_up=makes_up, teacher=teacher, **options)


def solve_layers(
    kept: PrunedGraph,
    pruned: ModelProto,
    batches: Batches,
    fit: Fit,
    wanted: Callable[[LinearLayer], bool],
    *,
    makes_up: bool = True,
    teacher: ModelProto | None = None,
    narrowed: Mapping[str, Logits] = MappingProxyType({}),
    seed: int = 0,
    positions: int = _POSITIONS,
    records: Records | None = None,
    name: str = "",
    phase: str = "repair",
    progress: Progress = silent,
) -> list[Repair]:
    """Solve for the weights of layer after layer, each on the outputs of those before it, in place.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the rewritten model; its weights change, its shapes don't.
        batches: returns the inputs; the same ones at each call.
        fit: returns a layer's weights, given it, the moments to fit, those held back, and the weights it has.
        wanted: whether to solve for a layer.
        makes_up: whether the last layer in front of a sum makes up for the error of the other branch.
        teacher: the network whose tensors are the targets, if the traced one isn't, see `recover`.
        narrowed: the products of attentions to refit, by the name of the last layer in front.
        seed: of the random choice of output positions.
        positions: the number of output positions sampled from 32 samples.
        records: the layers that are done already; filled as others are.
        name: the name of this work in the records.
        phase: what this work is called.
        progress: called with the layers that are done.

    Returns:
        The error of every solved layer before and after.

    Raises:
        ModelError: ONNX Runtime can't run a part of a model.
        UsageError: there are no inputs (OP604).
    """
    unmade, layers = kept.unmade, find_layers(pruned)
    if teacher is None:
        teacher = kept.original.proto
    else:
        layers = paired(layers, pruned, _tensors(teacher))
    numbers = {layer.node.name: i for i, layer in enumerate(layers)}
    now = Stream(pruned, smaller(kept, batches), unmade=unmade)
    then = Stream(teacher, batches, unmade=unmade)
    index = LayerIndex(pruned, numbers, kept.graph.shapes.shapes)
    places = index.positions, GraphIndex(teacher.graph).positions
    repairs, records = [], records or Records()

    def advance(layer: LinearLayer) -> None:
        starts = layer.first.node if isinstance(layer, PairedLayers) else layer.node, layer.node
        for stream, place, node in zip((now, then), places, starts, strict=True):
            stream.advance(place[node.name])  # also before layers that are done: cuts affect rounding

    for number, layer in enumerate(layers):
        if wanted(layer) and layer.y not in unmade:
            advance(layer)
            rng = np.random.default_rng((seed, number))
            target = target_of(layer, number, index) if makes_up else own_output(layer)
            if not unmade.isdisjoint((target.tensor, target.other or "")):
                target = own_output(layer)
            sink, key = intercept_place(layer, index), f"{name}/{phase}/{number}"
            if key in records:
                found, errors = records.arrays(key)["weights"], records[key]
            else:
                moments = _moments(kept, now, then, layer, target, rng, positions, intercept=sink is not None)
                found, errors = _refit(layer, index, *moments, fit)
                records.keep(key, errors, {"weights": found})
            set_parameters(layer, index.weights, sink, found)
            repairs.append(Repair(layer.node.name, *errors))
        if (attention := narrowed.get(layer.node.name)) is not None:
            advance(layer)
            repairs.append(
                _refit_logits(attention, now, then, index.weights, records, f"{name}/{phase}/{number}/logits")
            )
        progress(phase, number + 1, len(layers))
    return repairs


def _zeros_kept(start: Rows) -> Mask:
    """Return which weights aren't zero; intercepts are free."""
    mask = np.asarray(start != 0)
    mask[..., -1] = True
    return mask


def repair_runs(cost: Cost) -> float:
    """Return how many runs of a model a repair takes, for each sample; a rough guess.

    Besides running both networks, a layer of d features adds up d² products for each output position that is sampled,
    in double precision, which takes twice as long.

    Args:
        cost: the cost of the model for a sample.
    """
    products = 0.0
    for layer in cost.layers:
        size = prod(layer.output or ())
        if layer.macs and size:
            features = layer.macs / size
            positions = size * features / max(layer.params, features)
            sampled = min(_POSITIONS, max(_PER_FEATURE * features, _ALWAYS)) / _PER
            products += min(positions, sampled) * features**2
    return _RUNS + 2 * products / max(cost.macs, 1)


def unrepaired(kept: PrunedGraph, pruned: ModelProto, teacher: ModelProto | None = None) -> tuple[LeftOut, ...]:
    """Return the layers that read something that was pruned but can't be repaired, with the reasons.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the rewritten model.
        teacher: see `recover`.
    """
    if any(any(True for _ in subgraphs(node)) for node in pruned.graph.node):
        pruned = reopened(pruned)
    changed, unmade = _changed_tensors(kept, pruned, teacher), kept.unmade
    behind = (layer for layer in find_layers(pruned) if layer.x in changed and layer.y in unmade)
    reason = "ONNX Runtime can't run it, or a node in front of it"
    unrun = (LeftOut(layer.node.name, layer.node.op_type, reason) for layer in behind)
    return (*left_out(pruned, changed), *unrun)


def smaller(kept: PrunedGraph, batches: Batches) -> Batches:
    """Return the inputs of a pruned model, made of those of its original: of states, the kept positions."""
    entries = {state.input for state in kept.graph.states}
    if not entries:
        return batches
    return lambda: ({n: kept.cut(n, a) if n in entries else a for n, a in batch.items()} for batch in batches())


def _changed_tensors(kept: PrunedGraph, pruned: ModelProto, teacher: ModelProto | None = None) -> set[str]:
    """Return the tensors that depend on something that was pruned, or that the teacher doesn't have."""
    shapes, known = kept.graph.shapes.shapes, None if teacher is None else _tensors(teacher)
    changed = {block.skip for block in kept.blocks}  # what reads it read the block's sum in the original
    for node in pruned.graph.node:
        resized = any(n in shapes and kept.shape(n) != shapes[n] for n in [*node.input, *node.output])
        new = known is not None and not known.issuperset(node.output)
        if resized or new or not changed.isdisjoint(node.input):
            changed.update(node.output)
    return changed


def _tensors(model: ModelProto) -> set[str]:
    """Return the tensors that a model computes."""
    return {name for node in model.graph.node for name in node.output}


def _moments(
    kept: PrunedGraph,
    now: Stream,
    then: Stream,
    layer: LinearLayer,
    target: RegressionTarget,
    rng: np.random.Generator,
    positions: int,
    *,
    intercept: bool,
) -> tuple[Evidence, Evidence]:
    """Run both networks up to a layer; return the moments of its inputs and targets, fitted and held back."""
    wanted = [layer.x, *([target.other] if target.other else [])]
    axis = len(kept.graph.shapes.shapes[target.tensor]) - 1 if layer.channels_last else 1
    mask = kept.mask(target.tensor, axis)
    width = layer.features(Weights(now.model).shape(layer.weight))
    fitted, held = evidence(width), evidence(width)
    positions = min(positions, max(_PER_FEATURE * width, _ALWAYS))
    for i, (have, goals) in enumerate(zip(now.tensors(wanted), then.tensors([target.tensor]), strict=True)):
        x, goal = have[layer.x], goals[target.tensor]
        tensors = [goal]
        if target.other:
            if len(x) != len(goal):  # the layer's output is broadcast over the batch when it is added
                return _moments(kept, now, then, layer, own_output(layer), rng, positions, intercept=intercept)
            other = have[target.other]
            shape = [other.shape[axis] if a == axis else n for a, n in enumerate(goal.shape)]
            tensors.append(np.broadcast_to(other, shape))
        for part, sums in parts(len(x) if len(x) == len(goal) else 1, i, fitted, held):
            some = min(positions, max(positions * len(x) // _PER, _FEWEST))
            features, values = layer.sample(x[part], [t[part] for t in tensors], some, rng)
            y = values[0] if mask is None else values[0][:, mask]
            if target.other:
                y = y - values[1]
            sums.add(features, (y - target.shift) / target.scale, intercept=intercept)
    if not fitted.count:
        raise UsageError("OP604", "there are no inputs to repair the model with")
    return fitted, held


def _refit_logits(attention: Logits, now: Stream, then: Stream, weights: Weights, records: Records, key: str) -> Repair:
    """Refit the logits of an attention, or do as the records say."""
    if key in records:
        matrices, errors = records.arrays(key)["matrices"], records[key]
    else:
        matrices, errors = attention.fit(now, then)
        records.keep(key, errors, {"matrices": matrices})
    attention.fold(weights, matrices)
    return Repair(attention.name, *errors)


def _refit(
    layer: LinearLayer,
    index: LayerIndex,
    fitted: Evidence,
    held: Evidence,
    fit: Fit,
) -> tuple[Rows, tuple[float, float]]:
    """Fit a layer's weights; return them, and the errors before and after."""
    start = parameters(layer, index.weights)
    found = fit(layer, fitted, held, start)
    judge = held if held.count else fitted
    power = max(float(judge.power.sum()) / judge.count, 1e-30)
    return found, (judge.error(start) / power, judge.error(found) / power)


def repeat(batches: Iterable[Inputs]) -> Batches:
    """Return inputs in memory as the function that `recover` takes."""
    held = list(batches)
    return lambda: held
