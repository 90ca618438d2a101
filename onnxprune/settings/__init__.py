"""All settings, declared once.

Nothing here imports numpy or onnx, and each module is imported when first needed, so that `--help` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.settings.benchmarking import BenchmarkSettings as BenchmarkSettings
    from onnxprune.settings.cleaning import CleanSettings as CleanSettings
    from onnxprune.settings.declare import Settings as Settings, given as given
    from onnxprune.settings.evaluation import TaskSettings as TaskSettings
    from onnxprune.settings.packing import PackSettings as PackSettings, UnpackSettings as UnpackSettings
    from onnxprune.settings.pipeline import ShrinkSettings as ShrinkSettings
    from onnxprune.settings.planning import (
        Constraints as Constraints,
        LatencySettings as LatencySettings,
        PlanSettings as PlanSettings,
        Policies as Policies,
        Target as Target,
    )
    from onnxprune.settings.pruning import (
        DataSettings as DataSettings,
        PruneSettings as PruneSettings,
        RepairSettings as RepairSettings,
        TrimSettings as TrimSettings,
    )
    from onnxprune.settings.quantization import QuantizeSettings as QuantizeSettings
    from onnxprune.settings.reading import build as build
    from onnxprune.settings.reporting import ReportSettings as ReportSettings
    from onnxprune.settings.running import RunSettings as RunSettings
    from onnxprune.settings.sparsity import Pattern as Pattern, SparsifySettings as SparsifySettings
    from onnxprune.settings.sweep import PickSettings as PickSettings, SweepSettings as SweepSettings
    from onnxprune.settings.training import (
        Augmentation as Augmentation,
        LossSettings as LossSettings,
        TrainSettings as TrainSettings,
    )

_HOMES = {
    "benchmarking": "BenchmarkSettings",
    "cleaning": "CleanSettings",
    "declare": "Settings given",
    "evaluation": "TaskSettings",
    "packing": "PackSettings UnpackSettings",
    "pipeline": "ShrinkSettings",
    "planning": "Constraints LatencySettings PlanSettings Policies Target",
    "quantization": "QuantizeSettings",
    "reading": "build",
    "reporting": "ReportSettings",
    "running": "RunSettings",
    "pruning": "DataSettings RepairSettings PruneSettings TrimSettings",
    "sweep": "PickSettings SweepSettings",
    "sparsity": "Pattern SparsifySettings",
    "training": "Augmentation LossSettings TrainSettings",
}


def __getattr__(name: str) -> Any:
    """Import a class or function when it is first used (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
