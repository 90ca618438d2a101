"""Repair of a pruned network from unlabelled inputs, layer by layer, without gradients.

Inputs of each layer are taken from the network as pruned and repaired so far, targets from the original, so that a
layer makes up for the errors of those before it (He, Zhang and Sun, "Channel pruning for accelerating very deep neural
networks", ICCV 2017). Of the activations only running moments are kept, and those at the current layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune._tensors import set_tensor
from onnxprune.kept import Kept
from onnxprune.recover.layers import Layer, find_layers
from onnxprune.recover.lstsq import Moments, Rows, reconstruct, rescale, shift
from onnxprune.recover.stream import Batches, Inputs, Stream
from onnxprune.recover.targets import Target, Wiring, target_of

Method = Literal["bias", "bn", "reconstruct"]

_FITS: Mapping[Method, Callable[[Moments, Moments, Rows], Rows]] = {
    "bias": shift,
    "bn": rescale,
    "reconstruct": reconstruct,
}

# Of every five batches one is held back to choose ridges by; a single batch serves both ends.
_HELD_BACK = 5
# Positions per batch and feature: enough for stable moments, few enough to be fast.
_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one layer.

    Attributes:
        node: its name.
        before: mean squared error of its output on inputs held back, relative to the target's mean square.
        after: the same after the repair.
    """

    node: str
    before: float
    after: float


def recover(
    kept: Kept,
    pruned: ModelProto,
    batches: Batches,
    *,
    method: Method = "reconstruct",
    seed: int = 0,
    positions: int = _POSITIONS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Repair]:
    """Repair a pruned model in place.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the rewritten model; its weights change, its shapes don't.
        batches: gives the inputs, anew at each call, always the same.
        method: "reconstruct" refits all weights by least squares, "bn" a scale and an intercept for each output, "bias"
            the intercepts.
        seed: of the draw of output positions.
        positions: how many output positions are drawn from a batch.
        progress: told how many layers of how many are done.

    Returns:
        The error of every repaired layer before and after.

    Raises:
        ModelError: ONNX Runtime can't run a part of a model.
    """
    layers = find_layers(pruned)
    numbers = {layer.node.name: i for i, layer in enumerate(layers)}
    touched = _touched(kept, pruned)
    now, then = Stream(pruned, batches), Stream(kept.graph.proto, batches)
    places = [{n.name: i for i, n in enumerate(s.model.graph.node)} for s in (now, then)]
    repairs = []
    for number, layer in enumerate(layers):
        if layer.x in touched:
            for stream, place in zip((now, then), places, strict=True):
                stream.advance(place[layer.node.name])
            wiring = Wiring(pruned, numbers, kept.graph.shapes.shapes)
            rng = np.random.default_rng((seed, number))
            target = target_of(layer, number, wiring)
            fitted, held = _moments(kept, now, then, layer, target, rng, positions)
            repairs.append(_refit(layer, wiring, fitted, held, _FITS[method]))
        progress(number + 1, len(layers))
    return repairs


def _touched(kept: Kept, pruned: ModelProto) -> set[str]:
    """Return the tensors in front of which something has changed."""
    shapes = kept.graph.shapes.shapes
    touched: set[str] = set()
    for node in pruned.graph.node:
        changed = any(n in shapes and kept.shape(n) != shapes[n] for n in [*node.input, *node.output])
        if changed or not touched.isdisjoint(node.input):
            touched.update(node.output)
    return touched


def _moments(
    kept: Kept,
    now: Stream,
    then: Stream,
    layer: Layer,
    target: Target,
    rng: np.random.Generator,
    positions: int,
) -> tuple[Moments, Moments]:
    """Run both networks up to a layer and gather the moments of its inputs and targets."""
    wanted = [layer.x, *([target.other] if target.other else [])]
    axis = len(kept.graph.shapes.shapes[target.tensor]) - 1 if layer.channels_last else 1
    mask = kept.mask(target.tensor, axis)
    sets = (Moments(), Moments())
    for i, (have, goals) in enumerate(zip(now.tensors(wanted), then.tensors([target.tensor]), strict=True)):
        goal = goals[target.tensor]
        tensors = [goal, *([have[target.other]] if target.other else [])]
        features, values = layer.sample(have[layer.x], tensors, positions, rng)
        y = values[0] if mask is None else values[0][:, mask]
        if target.other:
            y = y - values[1]
        y = (y - target.shift) / target.scale
        if i == 0:  # a single batch must serve both
            half = len(y) // _HELD_BACK
            sets[1].add(features[:half], y[:half])
            sets[0].add(features[half:], y[half:])
        else:
            sets[i % _HELD_BACK == 0].add(features, y)
    return sets


def _refit(
    layer: Layer,
    wiring: Wiring,
    fitted: Moments,
    held: Moments,
    fit: Callable[[Moments, Moments, Rows], Rows],
) -> Repair:
    """Solve for a layer's weights and write them."""
    weights = wiring.weights
    matrix = layer.matrix(weights[layer.weight])
    intercept = np.zeros(matrix.shape[:2])
    if layer.bias is not None:
        intercept = np.asarray(weights[layer.bias], dtype=np.float64).reshape(intercept.shape)
    start = np.concatenate([matrix, intercept[..., None]], axis=2)
    found = fit(fitted, held, start)
    writable = _write_intercept(layer, wiring, found[..., -1].ravel() - intercept.ravel())
    if not writable:
        found = np.concatenate([found[..., :-1], start[..., -1:]], axis=2)
    power = max(float(held.power.sum()) / max(held.count, 1), 1e-30)
    before, after = held.error(start) / power, held.error(found) / power
    set_tensor(weights.tensor(layer.weight), layer.weight_of(found[..., :-1], weights[layer.weight]))
    return Repair(layer.node.name, before, after)


def _write_intercept(layer: Layer, wiring: Wiring, change: NDArray[np.float64]) -> bool:
    """Add to a layer's bias, or to what follows it: a normalisation's mean, a constant that is added."""
    weights = wiring.weights
    follower = wiring.only_reader(layer.y)
    name, sign = layer.bias, 1.0
    if name is None and follower is not None and follower.op_type == "BatchNormalization":
        name, sign = follower.input[3], -1.0
    elif name is None and follower is not None and follower.op_type == "Add":
        name = next((n for n in follower.input if wiring.per_channel(n, layer) is not None), None)
    if name is None or name not in weights or weights[name].size != change.size or len(wiring.readers[name]) > 1:
        return False
    old = weights[name]
    new = np.asarray(old, dtype=np.float64).ravel() + sign * change
    set_tensor(weights.tensor(name), new.reshape(old.shape).astype(old.dtype))
    return True


def repeat(batches: Iterable[Inputs]) -> Batches:
    """Return inputs that are in memory in the form that `recover` takes."""
    held = list(batches)

    def again() -> Iterator[Inputs]:
        return iter(held)

    return again
