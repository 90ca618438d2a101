"""Losses; all are means over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from onnxprune.model.tape import Tensor
from onnxprune.settings.training import LossSettings


def cross_entropy(logits: Tensor, labels: Tensor, settings: LossSettings) -> Tensor:
    """Return the mean negative log-likelihood of class labels.

    Args:
        logits: scores, [n, classes, ...].
        labels: class indices, [n, ...]; -1 for positions to ignore.
        settings: `smoothing` as of Szegedy et al., "Rethinking the Inception architecture", CVPR 2016.
    """
    classes = logits.shape[1]
    log = logits.op("LogSoftmax", axis=1)
    order = logits.tape.constant(np.arange(classes).reshape(1, -1, *[1] * (logits.rank - 2)))
    spread = labels.reshape((labels.shape[0], 1, *logits.shape[2:]))
    wanted = spread.equals(order).cast(logits.dtype)  # all zero where the label is -1
    counted = wanted.sum([1])
    target = wanted * (1 - settings.smoothing) + counted * (settings.smoothing / classes)
    return -(target * log).sum(keep=False) / counted.sum(keep=False).op("Max", 1.0)


def bce(logits: Tensor, labels: Tensor, settings: LossSettings) -> Tensor:
    """Return the mean binary cross-entropy of logits and probabilities of the same shape; -1 is ignored."""
    target = labels.cast(logits.dtype)
    losses = logits.op("Max", 0.0) - logits * target + (-logits.op("Abs")).op("Softplus")
    counted = (target + 1).op("Sign")  # labels are -1, or from 0 to 1
    return (losses * counted).sum(keep=False) / counted.sum(keep=False).op("Max", 1.0)


def mse(output: Tensor, target: Tensor, settings: LossSettings) -> Tensor:
    """Return the mean squared error."""
    difference = output - target.cast(output.dtype)
    return (difference * difference).mean(keep=False)


def huber(output: Tensor, target: Tensor, settings: LossSettings) -> Tensor:
    """Return the mean of half the squared error, which is linear beyond `delta`.

    P. J. Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35 (1964).
    """
    error = (output - target.cast(output.dtype)).op("Abs")
    small = error - (error - settings.delta).op("Max", 0.0)
    return (small * (error - small * 0.5)).mean(keep=False)


def kl(logits: Tensor, teacher: Tensor, settings: LossSettings) -> Tensor:
    """Return the divergence from the teacher's distribution at a temperature, times the square of the temperature.

    G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural network" (2015). Scores are
    [n, classes, ...].
    """
    t = settings.temperature
    mine, its = ((x * (1 / t)).op("LogSoftmax", axis=1) for x in (logits, teacher))
    positions = logits.size // logits.shape[1]
    return (its.op("Exp") * (its - mine)).sum(keep=False) * (t * t / positions)


Loss: TypeAlias = "Callable[[Tensor, Tensor, LossSettings], Tensor]"
LOSSES: Mapping[str, Loss] = {
    "bce": bce,
    "cross-entropy": cross_entropy,
    "huber": huber,
    "kl": kl,
    "mse": mse,
    "nmse": mse,
}
"""Losses by name; nmse is divided by the variance of its target, measured on data."""

OF_CLASSES = ("cross-entropy", "kl")
"""Losses that take class scores before a Softmax."""
