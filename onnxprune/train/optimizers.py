"""Optimizers and learning rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Protocol, TypeAlias

from onnxprune.model.tape import Tensor

Updated: TypeAlias = tuple[Tensor, Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class StepParameters:
    """An optimizer's parameters in a step.

    Attributes:
        rate: the learning rate, a scalar.
        step: the number of the step, from 1, a scalar.
        decay: weight decay; zero for norms and biases.
    """

    rate: Tensor
    step: Tensor
    decay: float


class Optimizer(Protocol):
    """An optimizer."""

    slots: ClassVar[tuple[str, ...]]
    """Names of its state tensors for each weight, initially zero."""

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: StepParameters) -> Updated:
        """Return the next weight and state from a weight, its gradient and its state."""


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum, as in PyTorch.

    Attributes:
        momentum: decay rate of the velocity.
        nesterov: whether Nesterov's momentum is used (Sutskever et al., ICML 2013).
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    momentum: float = 0.9
    nesterov: bool = True

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: StepParameters) -> Updated:
        """Step along the velocity."""
        g = g + w * at.decay if at.decay else g
        velocity = kept[0] * self.momentum + g
        direction = g + velocity * self.momentum if self.nesterov else velocity
        return w - direction * at.rate, [velocity]


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    Attributes:
        first: decay rate of the running mean.
        second: decay rate of the running mean square.
        epsilon: added to the root mean square.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square")

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: StepParameters) -> Updated:
        """Step along the mean divided by the root mean square."""
        direction, kept = self.direction(g, kept, at)
        decayed = w - w * (at.rate * at.decay) if at.decay else w
        return decayed - direction * at.rate, kept

    def direction(self, g: Tensor, kept: Sequence[Tensor], at: StepParameters) -> Updated:
        """Return the bias-corrected mean divided by the bias-corrected root mean square, and the next state."""
        mean = kept[0] * self.first + g * (1 - self.first)
        square = kept[1] * self.second + g * g * (1 - self.second)
        unbiased = (mean / _corrected(self.first, at.step), square / _corrected(self.second, at.step))
        return unbiased[0] / (unbiased[1].op("Sqrt") + self.epsilon), [mean, square]


@dataclass(frozen=True, slots=True)
class LAMB(AdamW):
    """Adam with steps relative to each weight's norm (You et al., "Large batch optimization", ICLR 2020).

    The learning rate is the relative size of a step, which suits all layers and networks. This matters if
    normalizations were folded into convolutions, whose weights then differ by orders of magnitude.

    Attributes:
        smallest: lower bound of a weight's root mean square (as in Adafactor), so that zero weights can change.
    """

    smallest: float = 1e-3

    def update(self, w: Tensor, g: Tensor, kept: Sequence[Tensor], at: StepParameters) -> Updated:
        """Step along Adam's direction, scaled to the weight's norm."""
        direction, kept = self.direction(g, kept, at)
        direction = direction + w * at.decay if at.decay else direction
        scale = _rms(w).op("Max", self.smallest) / (_rms(direction) + self.epsilon)
        return w - direction * (scale * at.rate), kept


def _rms(x: Tensor) -> Tensor:
    """Return the root mean square."""
    return (x * x).mean(keep=False).op("Sqrt")


def _corrected(beta: float, step: Tensor) -> Tensor:
    return 1 - step.like(beta) ** step


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the square of the joint norm, a scalar."""
    squares = [(g * g).sum(keep=False) for g in gradients]
    return squares[0].tape.emit("Sum", *squares)


def clipped(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Return gradients scaled down so that their joint norm is within a limit (Pascanu et al., ICML 2013)."""
    norm = squared_norm(gradients).op("Sqrt")
    factor = (limit / (norm + 1e-6)).op("Min", 1.0)
    return [g * factor for g in gradients]


_LOWEST = 1e-3  # end of a one-cycle, relative to the peak
_START = 0.04  # start of a one-cycle, relative to the peak
_RISE = 0.3  # share of a one-cycle in which the rate rises


def constant(progress: float) -> float:
    """Return the peak."""
    return 1.0


def cosine(progress: float) -> float:
    """Return half a cosine, from the peak to zero (Loshchilov and Hutter, ICLR 2017)."""
    return (1 + cos(pi * progress)) / 2


def one_cycle(progress: float) -> float:
    """Return a rise to the peak, then a fall far below the start, each half a cosine (Smith and Topin, 2017)."""
    if progress < _RISE:
        return 1 + (_START - 1) * cosine(progress / _RISE)
    return _LOWEST + (1 - _LOWEST) * cosine((progress - _RISE) / (1 - _RISE))


def step(progress: float) -> float:
    """Return the peak, a tenth of it from one half on, a hundredth from three quarters on."""
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
        number: number of the step, from 0.
        total: total number of steps.
        warm_up: number of steps over which the rate rises linearly from zero, before the schedule begins.
    """
    if number < warm_up:
        return (number + 1) / warm_up
    return SCHEDULES[name]((number - warm_up) / max(total - warm_up, 1))
