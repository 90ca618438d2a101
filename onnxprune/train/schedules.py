"""Schedules: the learning rate as a share of its peak, over the course of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi
from typing import Literal, TypeAlias

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
