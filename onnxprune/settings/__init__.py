"""All settings, declared once. Nothing here imports numpy or onnx, so that `--help` is fast."""

from __future__ import annotations

from onnxprune.settings.benchmarking import BenchmarkSettings
from onnxprune.settings.declare import Settings, build, given
from onnxprune.settings.planning import Constraints, LatencySettings, PlanSettings, Policies, Target
from onnxprune.settings.shrinking import DataSettings, RepairSettings, ShrinkSettings
from onnxprune.settings.training import Augmentation, LossSettings, TrainSettings

__all__ = [
    "Augmentation",
    "BenchmarkSettings",
    "Constraints",
    "DataSettings",
    "LatencySettings",
    "LossSettings",
    "PlanSettings",
    "Policies",
    "RepairSettings",
    "Settings",
    "ShrinkSettings",
    "Target",
    "TrainSettings",
    "build",
    "given",
]
