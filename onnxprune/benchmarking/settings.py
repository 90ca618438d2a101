"""What an inference session is opened with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from onnxprune.runtime.provider import Provider
from onnxprune.settings.benchmarking import Level

_LEVELS: Mapping[Level, str] = MappingProxyType(
    {
        "none": "ORT_DISABLE_ALL",
        "basic": "ORT_ENABLE_BASIC",
        "extended": "ORT_ENABLE_EXTENDED",
        "all": "ORT_ENABLE_ALL",
    }
)


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
