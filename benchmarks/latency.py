"""Latency of several models side by side: runs take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune._runtime import run, session

_WARM_UP = 3


def turns(
    models: Mapping[str, ModelProto], inputs: Mapping[str, NDArray[Any]], *, rounds: int, threads: int
) -> dict[str, NDArray[np.float64]]:
    """Run models in turn on ONNX Runtime's CPU provider.

    Args:
        models: the models by name, with the same inputs.
        inputs: an array for each input.
        rounds: how often each model runs, after some runs to warm up.
        threads: threads within an operator.

    Returns:
        Seconds of every run, by model, shape (rounds,).

    Raises:
        ModelError: ONNX Runtime can't load or run a model (OP122).
    """
    sessions = {name: session(model, threads=threads) for name, model in models.items()}
    times = {name: np.empty(rounds) for name in models}
    for turn in range(-_WARM_UP, rounds):
        for name, opened in sessions.items():
            start = perf_counter()
            run(opened, inputs)
            if turn >= 0:
                times[name][turn] = perf_counter() - start
    return times


def speedup(reference: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    """Return how many times faster than a reference, the median over turns."""
    return float(median(reference / times))
