"""Optimisers, written as formulas: from a weight, its gradient and the optimiser's state to what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from onnxprune.train.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Moment:
    """What an optimiser knows of a step.

    Attributes:
        rate: the learning rate, a number.
        step: the number of the step, from 1.
        decay: by which the weight decays, zero for norms and biases.
    """

    rate: Tensor
    step: Tensor
    decay: float


class Optimiser(Protocol):
    """An optimiser."""

    slots: ClassVar[tuple[str, ...]]
    """Names of the tensors that it keeps for each weight, zeros at first."""

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: Moment) -> tuple[Tensor, Sequence[Tensor]]:
        """Return what a weight and the tensors kept for it become."""


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum, in the form that frameworks share.

    Attributes:
        momentum: share of the velocity that remains.
        nesterov: whether the gradient is taken ahead (Sutskever et al., ICML 2013).
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    momentum: float = 0.9
    nesterov: bool = True

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: Moment) -> tuple[Tensor, Sequence[Tensor]]:
        """Follow the velocity."""
        g = g + w * at.decay if at.decay else g
        velocity = kept[0] * self.momentum + g
        way = g + velocity * self.momentum if self.nesterov else velocity
        return w - way * at.rate, [velocity]


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    Attributes:
        first: share of the running mean that remains.
        second: share of the running mean square that remains.
        epsilon: added to the root of the latter.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: Moment) -> tuple[Tensor, Sequence[Tensor]]:
        """Follow the mean, scaled by the root mean square."""
        way, kept = self.way(g, kept, at)
        decayed = w - w * (at.rate * at.decay) if at.decay else w
        return decayed - way * at.rate, kept

    def way(self, g: Tensor, kept: Sequence[Tensor], at: Moment) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the mean over the root mean square, both corrected for having started at zero; and what is kept."""
        mean = kept[0] * self.first + g * (1 - self.first)
        square = kept[1] * self.second + g * g * (1 - self.second)
        unbiased = (mean / _corrected(self.first, at.step), square / _corrected(self.second, at.step))
        return unbiased[0] / (unbiased[1].op("Sqrt") + self.epsilon), [mean, square]


@dataclass(frozen=True, slots=True)
class LAMB(AdamW):
    """Adam whose steps are a share of each weight's own size (You et al., "Large batch optimization", ICLR 2020).

    The rate is that share. It means the same in all layers and networks, which matters where normalisations were
    folded into convolutions: their weights then differ in size by orders of magnitude.

    Attributes:
        smallest: a weight's root mean square counts as this much at least (as in Adafactor), so that zeros can leave.
    """

    smallest: float = 1e-3

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: Moment) -> tuple[Tensor, Sequence[Tensor]]:
        """Follow Adam's way, by a share of the weight."""
        way, kept = self.way(g, kept, at)
        way = way + w * at.decay if at.decay else way
        share = _size(w).op("Max", self.smallest) / (_size(way) + self.epsilon)
        return w - way * (share * at.rate), kept


def _size(x: Tensor) -> Tensor:
    """Return the root mean square."""
    return (x * x).mean(keep=False).op("Sqrt")


def _corrected(beta: float, step: Tensor) -> Tensor:
    return 1 - step.like(beta) ** step


def clipped(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Scale gradients down to a norm, if all together they have a larger one (Pascanu et al., ICML 2013)."""
    squares = [(g * g).sum(keep=False) for g in gradients]
    norm = squares[0].tape.emit("Sum", *squares).op("Sqrt")
    factor = (limit / (norm + 1e-6)).op("Min", 1.0)
    return [g * factor for g in gradients]
