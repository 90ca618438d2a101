"""Prune ONNX models by rewriting their graphs, provably right.

The names below are the public API; they are imported when first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxprune.budget import Guards, Target
    from onnxprune.cost import Cost, model_cost
    from onnxprune.data import open_data
    from onnxprune.errors import (
        DataError,
        ModelError,
        OnnxPruneError,
        PlanError,
        RewriteError,
        UsageError,
        VerificationError,
    )
    from onnxprune.importance import criterion, score
    from onnxprune.kept import Kept
    from onnxprune.model import Model, load, save
    from onnxprune.pipeline import Analysis, Pruned, Settings, analyse, make_plan, prove, prune, sensitivities
    from onnxprune.plan import PrunePlan, apply_plan
    from onnxprune.search import Found, prune_within
    from onnxprune.trace import ChannelGraph, Group, Pin, Slice, Unit
    from onnxprune.verify import Verification

_HOME = {
    "budget": ("Guards", "Target"),
    "cost": ("Cost", "model_cost"),
    "data": ("open_data",),
    "errors": (
        *("DataError", "ModelError", "OnnxPruneError", "PlanError", "RewriteError", "UsageError"),
        "VerificationError",
    ),
    "importance": ("criterion", "score"),
    "kept": ("Kept",),
    "model": ("Model", "load", "save"),
    "pipeline": ("Analysis", "Pruned", "Settings", "analyse", "make_plan", "prove", "prune", "sensitivities"),
    "plan": ("PrunePlan", "apply_plan"),
    "search": ("Found", "prune_within"),
    "trace": ("ChannelGraph", "Group", "Pin", "Slice", "Unit"),
    "verify": ("Verification",),
}

__all__ = [
    "Analysis",
    "ChannelGraph",
    "Cost",
    "DataError",
    "Found",
    "Group",
    "Guards",
    "Kept",
    "Model",
    "ModelError",
    "OnnxPruneError",
    "Pin",
    "PlanError",
    "PrunePlan",
    "Pruned",
    "RewriteError",
    "Settings",
    "Slice",
    "Target",
    "Unit",
    "UsageError",
    "Verification",
    "VerificationError",
    "analyse",
    "apply_plan",
    "criterion",
    "load",
    "make_plan",
    "model_cost",
    "open_data",
    "prove",
    "prune",
    "prune_within",
    "save",
    "score",
    "sensitivities",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
