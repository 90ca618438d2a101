"""Activations: how large, how often not zero, how variable what readers are given is.

A unit's value is that of what the layers that read it multiply by their weights: behind the activation function, and
averaged over positions and taps. With several readers, each one's values are relative to their mean over the group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.importance.base import Scores, View
from onnxprune.importance.readings import Reading
from onnxprune.importance.registry import criterion
from onnxprune.recover.lstsq import Rows

_READER = "a convolution or matrix product that reads it with weights of its own"


@criterion("mean-abs", reads=_READER, data=True)
def mean_abs(view: View) -> Scores:
    """Score a unit by the mean of its absolute activations.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", ICLR 2017, among others.
    """
    return _average(view, lambda reading: reading.sums.size / reading.sums.count)


@criterion("apoz", reads=_READER, data=True)
def apoz(view: View) -> Scores:
    """Score a unit by the share of its activations that aren't zero: one less the average percentage of zeros.

    Hu et al., "Network trimming", 2016. It tells units apart only behind activation functions that give zeros.
    """
    return _average(view, lambda reading: reading.sums.active / reading.sums.count)


@criterion("variance", reads=_READER, data=True)
def variance(view: View) -> Scores:
    """Score a unit by the variance of its activations: what doesn't vary, an intercept can stand in for."""
    return _average(view, lambda reading: np.einsum("gff->gf", reading.covariance))


def _average(view: View, of: Callable[[Reading], Rows]) -> Scores:
    if not view.readings:
        return view.unscored
    total = np.zeros(len(view.group.units))
    for reading in view.readings:
        values = reading.per_unit(of(reading), view.group.units)
        total += values / max(float(values.mean()), 1e-30)
    return total / len(view.readings)
