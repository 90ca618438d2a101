"""How latency is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxprune.errors import BenchmarkError
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings.declare import Settings, Share, setting

Level = Literal["none", "basic", "extended", "all"]

_FEWEST = 5  # rounds that an interval takes


@dataclass(frozen=True, slots=True)
class BenchmarkSettings(Settings):
    """How to measure.

    Attributes:
        providers: the execution providers, each a table of its own.
        batches: the batch sizes, each a table of its own; None for the one that the models or the inputs have.
        threads: threads within an operator; None for ONNX Runtime's default, all cores.
        level: how far ONNX Runtime may optimize the graph.
        arena: whether the CPU provider may keep freed memory for later.
        seconds: how long each model is measured at least.
        rounds: in how many turns this is done, at least.
        warm_up: seconds after which a model is measured although its median hasn't settled.
        confidence: coverage of the intervals.
        isolate: whether each model runs in a process of its own.
        profile: whether to report time by layer and operator.
        fallback: whether a provider that runs no node at all is accepted, with a note.
        seed: of generated inputs and of resampling.
    """

    _error: ClassVar = (BenchmarkError, "OP801")

    providers: tuple[Provider, ...] = setting((Provider(CPU),), "Execution providers.", least=1)
    batches: tuple[int | None, ...] = setting((None,), "Batch sizes.", at_least=1, least=1)
    threads: int | None = setting(None, "Threads within an operator.", at_least=1, shown="all cores")
    level: Level = setting("all", "How far ONNX Runtime may optimize the graph.", flag="--optimization")
    arena: bool = setting(True, "Let the CPU provider keep freed memory.")
    seconds: float = setting(2.0, "Measure each model for at least this long.", above=0)
    rounds: int = setting(15, "Measure each model in at least this many turns.", at_least=_FEWEST)
    warm_up: float = setting(10.0, "Longest time to warm up, in seconds.", at_least=0)
    confidence: Share = setting(0.95, "Coverage of the intervals.", above=0, below=1)
    isolate: bool = setting(False, "Run each model in a process of its own.")
    profile: bool = setting(False, "Report time by operator and by layer, and where pruning did not pay.")
    fallback: bool = setting(False, "Accept a provider that runs nothing of a model.", flag="--allow-fallback")
    seed: int = setting(0, "Seed of everything random.", at_least=0)
