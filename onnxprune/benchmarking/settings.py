"""What a benchmark is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from onnxprune.errors import BenchmarkError
from onnxprune.runtime.provider import CPU, Provider

Level = Literal["none", "basic", "extended", "all"]

_LEVELS: Mapping[Level, str] = MappingProxyType(
    {
        "none": "ORT_DISABLE_ALL",
        "basic": "ORT_ENABLE_BASIC",
        "extended": "ORT_ENABLE_EXTENDED",
        "all": "ORT_ENABLE_ALL",
    }
)
# Rounds from which an interval can be told.
_FEWEST = 5

LEVELS: tuple[Level, ...] = tuple(_LEVELS)


@dataclass(frozen=True, slots=True)
class BenchmarkSettings:
    """How to measure.

    Attributes:
        providers: the execution providers, each a table of its own.
        batches: the batch sizes, each a table of its own; None for the one that the models or the inputs have.
        threads: threads within an operator; None for ONNX Runtime's default, all cores.
        level: how far ONNX Runtime may optimize the graph.
        arena: whether the CPU provider may keep freed memory for later.
        seconds: how long each model is measured at least.
        rounds: in how many turns this is done, at least; from fewer than five no interval can be told.
        warm_up: seconds after which a model is measured although its median hasn't settled.
        confidence: coverage of the intervals.
        isolate: whether each model runs in a process of its own.
        profile: whether to tell time by layer and operator.
        fallback: whether a provider that runs no node at all is accepted, with a note.
        seed: of generated inputs and of resampling.
    """

    providers: tuple[Provider, ...] = (Provider(CPU),)
    batches: tuple[int | None, ...] = (None,)
    threads: int | None = None
    level: Level = "all"
    arena: bool = True
    seconds: float = 2.0
    rounds: int = 15
    warm_up: float = 10.0
    confidence: float = 0.95
    isolate: bool = False
    profile: bool = False
    fallback: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            BenchmarkError: one is (OP801).
        """
        sound = {
            "providers": bool(self.providers),
            "batches": bool(self.batches) and all(b is None or b >= 1 for b in self.batches),
            "threads": self.threads is None or self.threads >= 1,
            "level": self.level in LEVELS,
            "seconds": self.seconds > 0,
            "rounds": self.rounds >= _FEWEST,
            "warm_up": self.warm_up >= 0,
            "confidence": 0 < self.confidence < 1,
        }
        for name, holds in sound.items():
            if not holds:
                raise BenchmarkError("OP801", f"{name} is out of range: {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The part of the settings that a session is opened with; it travels to other processes as JSON.

    Attributes:
        provider: the execution provider.
        threads: threads within an operator, None for the default.
        level: how far the graph may be optimized.
        arena: whether the CPU provider may keep freed memory.
        entries: further entries of ONNX Runtime's session configuration.
    """

    provider: Provider
    threads: int | None = None
    level: Level = "all"
    arena: bool = True
    entries: Mapping[str, str] = field(default_factory=dict)

    def chain(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the providers to open a session with, each with its options."""
        return self.provider.chain(self.threads)

    def configure(self, options: Any) -> None:
        """Set what `onnxprune.model.session.session` leaves open on ONNX Runtime's SessionOptions."""
        levels = type(options.graph_optimization_level)
        options.graph_optimization_level = getattr(levels, _LEVELS[self.level])
        options.enable_cpu_mem_arena = self.arena
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
