"""Activations: how large, how often not zero, how variable what readers are given is.

A unit's value is that of what the layers that read it multiply by their weights: behind the activation function, and
averaged over positions and taps. With several readers, each one's values are relative to their mean over the group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.importance.base import GroupView, Scores
from onnxprune.importance.readings import Reading
from onnxprune.importance.registry import criterion
from onnxprune.recover.lstsq import Rows

_READER = "a convolution or matrix product that reads it with weights of its own"


@criterion("mean-abs", reads=_READER, data=True)
def mean_abs(view: GroupView) -> Scores:
    """Score a unit by the mean of its absolute activations.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", ICLR 2017, among others.
    """
    return _average(view, lambda reading: reading.sums.size / reading.sums.count)


@criterion("apoz", reads=_READER, data=True)
def apoz(view: GroupView) -> Scores:
    """Score a unit by the share of its activations that aren't zero: one less the average percentage of zeros.

    Hu et al., "Network trimming", 2016. It tells units apart only behind activation functions that give zeros.
    """
    return _average(view, lambda reading: reading.sums.active / reading.sums.count)


@criterion("variance", reads=_READER, data=True)
def variance(view: GroupView) -> Scores:
    """Score a unit by the variance of its activations: what doesn't vary, an intercept can stand in for."""
    return _average(view, lambda reading: np.einsum("gff->gf", reading.covariance))


def _average(view: GroupView, of: Callable[[Reading], Rows]) -> Scores:
    if not view.readings:
        return view.unscored
    total = np.zeros(len(view.group.units))
    for reading in view.readings:
        values = reading.per_unit(of(reading), view.group.units)
        total += values / max(float(values.mean()), 1e-30)
    return total / len(view.readings)


_LAYER = "a layer with weights that reads it"


@criterion("taylor", reads=_LAYER, data=True)
def taylor(view: GroupView) -> Scores:
    """Score a unit by the mean over samples of the first-order change of the loss when it is removed.

    Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019.
    """
    return view.unscored if view.gates is None else view.gates.mean_absolute(view.group.units)


@criterion("fisher", reads=_LAYER, data=True)
def fisher(view: GroupView) -> Scores:
    """Score a unit by the Fisher information about its gate, half of which is the expected rise of the loss.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018); Liu et al., "Group Fisher
    pruning", ICML 2021, for units of several layers.
    """
    return view.unscored if view.gates is None else view.gates.mean_square(view.group.units)
