"""Prune ONNX models by rewriting their graphs, provably right.

The names below are the public API; they are imported when first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxprune.cost.cost import Cost, model_cost
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
    from onnxprune.model.file import Model, load, save
    from onnxprune.planning.budget import Constraints, Target
    from onnxprune.planning.plan import PrunePlan, apply_plan
    from onnxprune.rewrite.verify import Verification
    from onnxprune.trace import ChannelGraph, Group, Pin, Slice, Unit
    from onnxprune.trace.pruned_graph import PrunedGraph
    from onnxprune.workflow.max_drop import MaxDropResult, prune_within
    from onnxprune.workflow.pipeline import (
        PlanSettings,
        Pruned,
        TracedModel,
        analyze,
        make_plan,
        prove,
        prune,
        sensitivities,
    )

_HOME = {
    "planning.budget": ("Constraints", "Target"),
    "cost.cost": ("Cost", "model_cost"),
    "data": ("open_data",),
    "errors": (
        *("DataError", "ModelError", "OnnxPruneError", "PlanError", "RewriteError", "UsageError"),
        "VerificationError",
    ),
    "importance": ("criterion", "score"),
    "trace.pruned_graph": ("PrunedGraph",),
    "model.file": ("Model", "load", "save"),
    "workflow.pipeline": (
        "TracedModel",
        "Pruned",
        "PlanSettings",
        "analyze",
        "make_plan",
        "prove",
        "prune",
        "sensitivities",
    ),
    "planning.plan": ("PrunePlan", "apply_plan"),
    "workflow.max_drop": ("MaxDropResult", "prune_within"),
    "trace": ("ChannelGraph", "Group", "Pin", "Slice", "Unit"),
    "rewrite.verify": ("Verification",),
}

__all__ = [
    "ChannelGraph",
    "Constraints",
    "Cost",
    "DataError",
    "Group",
    "MaxDropResult",
    "Model",
    "ModelError",
    "OnnxPruneError",
    "Pin",
    "PlanError",
    "PlanSettings",
    "PrunePlan",
    "Pruned",
    "PrunedGraph",
    "RewriteError",
    "Slice",
    "Target",
    "TracedModel",
    "Unit",
    "UsageError",
    "Verification",
    "VerificationError",
    "analyze",
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
