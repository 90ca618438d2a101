"""A training step as an ONNX graph: forward pass, loss, gradients, optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.autodiff.backward import model_of, reached
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.errors import TrainingError
from onnxprune.model.graph import extract
from onnxprune.model.tape import FLOAT, Tape, Tensor
from onnxprune.settings.training import TrainSettings
from onnxprune.train.masks import DENSE, MASK, first_masks
from onnxprune.train.objective import Objective, write_losses
from onnxprune.train.optimizers import LAMB, SGD, AdamW, Optimizer, StepParameters, clipped, squared_norm
from onnxprune.train.trainable import is_vector, trainable

Arrays = Mapping[str, NDArray[Any]]

RATE, NUMBER, NEXT, SKIPPED = "rate:", "number:", ":next", "skipped:"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """The graphs of a training step.

    A tensor ``x`` of the state is an input of the graphs; their output ``x:next`` is its next value.

    Attributes:
        gradients: the graph that takes a batch. It also updates the weights, unless gradients accumulate.
        update: the graph that updates the weights from accumulated gradients, None unless they accumulate.
        state: the initial state: weights, statistics, optimizer state, accumulated gradients.
        weights: the tensors of the state that are initializers of the model.
        losses: the outputs that are losses.
        unreached: the initializers that would be trained, if the losses depended on them.
        fixed: values of inputs, such as a sampling rate, that the graphs hold for.
        masked: the weights that have a mask, see `onnxprune.train.masks`.

    The first graph's output `SKIPPED` is 1 if the loss or the gradient isn't finite, else 0: nothing is to change then.
    """

    gradients: ModelProto
    update: ModelProto | None
    state: dict[str, NDArray[Any]]
    weights: tuple[str, ...]
    losses: tuple[str, ...]
    unreached: tuple[str, ...] = ()
    fixed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    masked: tuple[str, ...] = ()


def build_step(
    proto: ModelProto,
    goal: Objective,
    settings: TrainSettings,
    examples: Arrays,
    *,
    scales: Mapping[str, float] | None = None,
    fast: bool = True,
) -> TrainingStep:
    """Build the graphs of a training step.

    Args:
        proto: a normalized model; half precision is trained in single precision.
        goal: the objective.
        settings: the settings.
        examples: arrays with the shapes of a step's inputs: the model's inputs, ``labels``, the teacher's tensors.
        scales: see `write_losses`.
        fast: see `forward`.

    Raises:
        TrainingError: an operator can't be differentiated (OP901, OP902), or the loss doesn't fit (OP904).
    """
    trained = trainable(proto, freeze=settings.freeze, also=settings.also)
    proto = extract(proto, (term.tensor for term in goal.terms))  # what is behind needn't be differentiable
    shapes = {i.name: examples[i.name].shape for i in proto.graph.input if i.name in examples}
    batch = next((shape[0] for shape in shapes.values() if shape), 1)
    given = {n: examples[n] for n in shapes if examples[n].dtype.kind in "biu" and examples[n].size == 1}
    graph = forward(proto, shapes, trained, norms=settings.norms_for(batch), fast=fast, given=given)
    losses = write_losses(graph, proto, goal, settings, examples, scales)
    found = reached(graph.tape, losses["loss"], list(graph.weights.values()))
    if not found:
        raise TrainingError("OP904", "no weight that is trained changes the loss")
    weights = {name: tensor for name, tensor in graph.weights.items() if name in found}  # others mustn't even decay
    state = feeds_of(graph, proto)
    found = {name: part.reshape((-1,)) for name, part in found.items()}
    zero = (losses["loss"] + squared_norm(list(found.values()))) * 0.0  # NaN if anything isn't finite
    outputs = {**losses, SKIPPED: 1 - zero.equals(0.0).cast(FLOAT)}
    outputs |= {f"{name}{NEXT}": tensor for name, tensor in graph.updates.items()}
    optimizer = optimizer_of(settings)
    masks = first_masks({name: state[name] for name in weights}, settings)
    state |= {name: state[name] * mask.reshape(state[name].shape) for name, mask in masks.items()}
    state |= {name + MASK: mask for name, mask in masks.items()}
    state |= {f"{n}:{s}": np.zeros(t.size, np.float32) for n, t in weights.items() for s in optimizer.slots}
    update = None
    if settings.accumulate == 1:
        outputs |= _updates(graph.tape, weights, found, optimizer, settings, masks)
    else:
        for name, weight in weights.items():
            sums = graph.tape.input(f"{name}:gradient", (weight.size,), FLOAT)
            state[sums.name] = np.zeros(weight.size, np.float32)
            outputs[f"{sums.name}{NEXT}"] = sums + found[name] * (1 / settings.accumulate)
        update = _update_graph(graph.tape.opset, weights, optimizer, settings, masks)
    names = (*weights, *graph.statistics)
    unreached = tuple(name for name in trained if name not in weights)
    fixed = {name: given[name] for name in graph.decided}
    return TrainingStep(model_of(graph.tape, outputs), update, state, names, tuple(losses), unreached, fixed, (*masks,))


def optimizer_of(settings: TrainSettings) -> Optimizer:
    """Return the optimizer of some settings."""
    made: Mapping[str, Optimizer] = {
        "adamw": AdamW(),
        "lamb": LAMB(),
        "sgd": SGD(settings.momentum, nesterov=settings.momentum > 0),
    }
    return made[settings.optimizer]


def _update_graph(
    opset: int, weights: Mapping[str, Tensor], optimizer: Optimizer, settings: TrainSettings, masked: Collection[str]
) -> ModelProto:
    """Build the graph that updates weights from accumulated gradients and resets these."""
    tape = Tape(opset)
    copies = {name: tape.input(name, w.shape, FLOAT) for name, w in weights.items()}
    sums = {name: tape.input(f"{name}:gradient", (w.size,), FLOAT) for name, w in weights.items()}
    outputs = _updates(tape, copies, sums, optimizer, settings, masked)
    return model_of(tape, outputs | {f"{s.name}{NEXT}": s.zeros() for s in sums.values()}, "update")


def _updates(
    tape: Tape,
    weights: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    optimizer: Optimizer,
    settings: TrainSettings,
    masked: Collection[str],
) -> dict[str, Tensor]:
    """Append the optimizer; return the next values of weights and optimizer state.

    Masked elements have no gradient, and stay zero. For RigL, the gradient of all elements is kept in the state.

    All tensors are flattened: for shapes with trailing axes of size 1, as of pointwise convolutions, ONNX Runtime's CPU
    provider is twenty times slower at multiplying by a scalar.
    """
    rate, number = tape.input(RATE, (), FLOAT), tape.input(NUMBER, (), FLOAT)
    masks = {name: tape.input(name + MASK, (weights[name].size,), FLOAT) for name in masked}
    parts = [found[name] * masks[name] if name in masks else found[name] for name in weights]
    if settings.clip:
        parts = clipped(parts, settings.clip)
    after: dict[str, Tensor] = {}
    if settings.sparse == "rigl":
        after = {f"{name}{DENSE}{NEXT}": found[name] for name in masks}
    for (name, weight), part in zip(weights.items(), parts, strict=True):
        kept = [tape.input(f"{name}:{slot}", (weight.size,), FLOAT) for slot in optimizer.slots]
        decay = 0.0 if is_vector(weight.shape) else settings.decay
        new, keep = optimizer.update(weight.reshape((-1,)), part, kept, StepParameters(rate, number, decay))
        new = new * masks[name] if name in masks else new
        after[f"{name}{NEXT}"] = new.reshape(weight.shape)
        after |= {f"{k.name}{NEXT}": t for k, t in zip(kept, keep, strict=True)}
    return after
