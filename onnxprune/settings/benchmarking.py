"""How latency is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxprune.errors import BenchmarkError
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings.declare import Settings, setting
from onnxprune.settings.types import Share

Level = Literal["none", "basic", "extended", "all"]

_FEWEST = 5  # rounds, for an interval


@dataclass(frozen=True, slots=True)
class BenchmarkSettings(Settings):
    """How to measure latency."""

    _error: ClassVar = (BenchmarkError, "OP801")

    providers: tuple[Provider, ...] = setting(
        (Provider(CPU),), "Execution providers; each gets its own table.", least=1, by_hand=True, shown="cpu"
    )
    batches: tuple[int | None, ...] = setting(
        (None,),
        "Batch sizes; each gets its own table.",
        at_least=1,
        least=1,
        by_hand=True,
        shown="that of the model or the inputs, or 1",
    )
    threads: int | None = setting(None, "Number of intra-operator threads.", at_least=1, shown="all cores")
    level: Level = setting("all", "ONNX Runtime's graph optimization level.", flag="--optimization")
    arena: bool = setting(True, "Let the CPU provider keep freed memory in its arena.")
    seconds: float = setting(2.0, "Measure each model for at least this many seconds.", above=0)
    rounds: int = setting(15, "Measure each model in at least this many rounds.", at_least=_FEWEST)
    warm_up: float = setting(
        10.0, "Start measuring after this many seconds even if the median hasn't settled.", at_least=0
    )
    confidence: Share = setting(0.95, "Coverage of the confidence intervals.", above=0, below=1)
    isolate: bool = setting(False, "Run each model in its own process.")
    profile: bool = setting(
        False, "Report time by operator and by layer, and the likely reason where pruning didn't pay off."
    )
    fallback: bool = setting(
        False, "Accept a provider that runs no node of a model, with a note.", flag="--allow-fallback"
    )
    seed: int = setting(0, "Random seed, for generated inputs and resampling.", at_least=0)
