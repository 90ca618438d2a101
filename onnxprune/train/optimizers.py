"""Optimizers, written as formulas: from a weight, its gradient and the optimizer's state to what they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Literal, Protocol, TypeAlias

from onnxprune.model.tape import Tensor


@dataclass(frozen=True, slots=True)
class Moment:
    """What an optimizer knows of a step.

    Attributes:
        rate: the learning rate, a number.
        step: the number of the step, from 1.
        decay: by which the weight decays, zero for norms and biases.
    """

    rate: Tensor
    step: Tensor
    decay: float


class Optimizer(Protocol):
    """An optimizer."""

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

    The rate is that share. It means the same in all layers and networks, which matters where normalizations were
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


ScheduleName: TypeAlias = Literal["constant", "cosine", "one-cycle", "step"]

_LOWEST = 1e-3  # of the peak, where a one-cycle ends
_START = 0.04  # of the peak, where a one-cycle begins
_RISE = 0.3  # share of a one-cycle in which the rate rises


def constant(progress: float) -> float:
    """The peak, all the time."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine, from the peak to zero (Loshchilov and Hutter, ICLR 2017)."""
    return (1 + cos(pi * progress)) / 2


def one_cycle(progress: float) -> float:
    """Up to the peak and down far below the start (Smith and Topin, 2017), both along half a cosine."""
    if progress < _RISE:
        return 1 + (_START - 1) * cosine(progress / _RISE)
    return _LOWEST + (1 - _LOWEST) * cosine((progress - _RISE) / (1 - _RISE))


def step(progress: float) -> float:
    """A tenth from one half on, a hundredth from three quarters on."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "one-cycle": one_cycle,
    "step": step,
}
"""Schedules by name."""


def rate(name: str, number: int, total: int, warm_up: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    Args:
        name: the schedule.
        number: of the step, from 0.
        total: how many steps there are.
        warm_up: over so many steps the rate rises from zero, before the schedule begins.
    """
    if number < warm_up:
        return (number + 1) / warm_up
    return SCHEDULES[name]((number - warm_up) / max(total - warm_up, 1))
