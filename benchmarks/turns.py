"""Latency of several models side by side, as `onnxprune benchmark` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.rounds import Rounds, ratio, run_interleaved, warm_up
from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.runtime.provider import CPU, Provider

_WARM_UP = 2.0


def turns(
    models: Mapping[str, ModelProto],
    inputs: Mapping[str, NDArray[Any]],
    *,
    rounds: int,
    threads: int,
    seconds: float = 0.01,
    provider: Provider | None = None,
) -> dict[str, Rounds]:
    """Run models on ONNX Runtime in an interleaved order.

    Args:
        models: the models by name, with the same inputs.
        inputs: an array for each input.
        rounds: number of rounds; each runs every model.
        threads: threads within an operator.
        seconds: shortest time that each model runs in a round.
        provider: the execution provider; the CPU by default.

    Returns:
        Seconds of every run by model and round.

    Raises:
        ModelError: ONNX Runtime can't load or run a model (OP122).
    """
    settings = SessionSettings(provider or Provider(CPU), threads)
    opened = {name: TimedSession(model, inputs, settings) for name, model in models.items()}
    typical = [warm_up(subject, _WARM_UP).typical for subject in opened.values()]
    found = run_interleaved(list(opened.values()), typical, rounds=rounds, seconds=seconds)
    return dict(zip(models, found, strict=True))


def speedup(reference: Rounds, own: Rounds) -> float:
    """Return the speed-up of a model over a reference."""
    return ratio(reference, own).value
