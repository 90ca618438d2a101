"""Lottery tickets: sparse networks that learn as well as the dense one, if they begin with its early weights.

Iterative magnitude pruning: train, set the smallest weights to zero, put the others back to their early values, and
again (J. Frankle and M. Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", ICLR 2019).
Early values may be those of the start, or those after some steps of training (J. Frankle et al., "Stabilizing the
lottery ticket hypothesis", 2019), which large networks need.

Whether these values matter is seen by a control with the same zeros, whose values are drawn anew. The distribution that
a file's weights were drawn from isn't known, so the values that stay in a layer are shuffled, as in H. Zhou et al.,
"Deconstructing lottery tickets", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import TrainingError
from onnxprune.evaluation import Evaluation
from onnxprune.model.file import weights
from onnxprune.model.tensors import with_weights
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train.masks import can_be_sparse, smallest_zero
from onnxprune.train.trainable import trainable


class Tuned(Protocol):
    """The result of a training."""

    @property
    def proto(self) -> ModelProto:
        """The trained model."""


T = TypeVar("T", bound=Tuned)


@dataclass(frozen=True, slots=True)
class TicketRound:
    """A network of the search, trained from early weights.

    Attributes:
        zeros: the share of zeros in the weights that may be zero.
        after: the evaluation of the trained network; None without validation.
    """

    zeros: float
    after: Evaluation | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a search for a lottery ticket found.

    Attributes:
        rounds: the dense network, and the sparse ones; the last is the ticket.
        control: the network with the ticket's zeros and shuffled values, trained alike.
        against_control: the ticket against that; None without validation.
        against_dense: the ticket against the dense network.
        rewound: whether early weights were given; else each round began with the weights of the model.
    """

    rounds: tuple[TicketRound, ...]
    control: TicketRound
    against_control: Evaluation | None = field(repr=False)
    against_dense: Evaluation | None = field(repr=False)
    rewound: bool = False


@dataclass(frozen=True, slots=True)
class Search(Generic[T]):
    """The trainings of a search.

    Attributes:
        rounds: the share of zeros and the result of each.
        control: the result of the control.
    """

    rounds: Sequence[tuple[float, T]]
    control: T


def search(
    model: ModelProto, early: ModelProto | None, settings: TrainSettings, train: Callable[[ModelProto, str], T]
) -> Search[T]:
    """Look for a ticket, and train the control.

    Args:
        model: the normalized model; the first training begins with its weights.
        early: the same network with the weights that others begin with; those of the model by default.
        settings: the share of zeros, the number of steps, and which weights are trained.
        train: trains a model, given with a name for this training. It keeps zeros.

    Raises:
        TrainingError: no weight can be zero (OP904), or the early weights are of another network (OP905).
    """
    begin = _values(model, early)
    names = [n for n in trainable(model, freeze=settings.freeze, also=settings.also) if can_be_sparse(begin[n].shape)]
    if not names:
        raise TrainingError("OP904", "no weight that is trained is a matrix, so none can become sparse")
    found, start = list[tuple[float, T]](), model
    for step in range(settings.ticket_steps + 1):
        tuned = train(start, f"step{step}")
        stored = weights(normalize(start))
        zeros = sum(int((stored[n] == 0).sum()) for n in names) / sum(stored[n].size for n in names)
        found.append((zeros, tuned))
        if step < settings.ticket_steps:
            left = weights(normalize(tuned.proto))
            sparsity = 1 - (1 - settings.final_sparsity) ** ((step + 1) / settings.ticket_steps)
            masks = smallest_zero({name: left[name] for name in names}, sparsity)
            start = with_weights(model, {**begin, **{name: begin[name] * masks[name] for name in names}})
    rng = np.random.default_rng(settings.seed)
    drawn = {name: _shuffled(begin[name], masks[name], rng) for name in names}
    return Search(found, train(with_weights(model, {**begin, **drawn}), "control"))


def _values(model: ModelProto, early: ModelProto | None) -> dict[str, NDArray[Any]]:
    """Return the real initializers of an early model, which must be those of the model in name and shape."""
    own, other = weights(model), weights(model if early is None else early)
    wanted = {name: own.shape(name) for name in own if own.dtype(name).kind == "f"}
    for name, shape in wanted.items():
        if name not in other or other.shape(name) != shape:
            cause = f'the early model has no weight "{name}" of shape {list(shape)}: it is another network'
            raise TrainingError("OP905", cause, where="rewind")
    return {name: np.array(other[name]) for name in wanted}


def _shuffled(values: NDArray[Any], mask: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    """Return the values that stay in another order, and zeros where they are."""
    found = np.zeros_like(values)
    found[mask != 0] = rng.permutation(values[mask != 0])
    return found
