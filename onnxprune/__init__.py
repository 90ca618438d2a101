"""Prune ONNX models by rewriting their graphs, provably right.

The workflow is a function each: `load` a model, `analyze` it, `plan` what to remove, `prune`, `repair` and `finetune`
the result, `evaluate`, `verify` and `benchmark` it, `save` it. `shrink` does it all, as the command line does.

The names below are the public API; they are imported when first used, so that the command line starts fast.

Example:
    >>> import onnxprune as op
    >>> model = op.analyze("models/digits_resnet.onnx")
    >>> plan = op.plan(model, target=op.Target("macs", 0.5))
    >>> small = op.prune(model, plan)
    >>> small.verification.passed
    True
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxprune.benchmarking.run import benchmark as benchmark
    from onnxprune.cost.cost import Cost as Cost
    from onnxprune.cost.cost import model_cost as model_cost
    from onnxprune.data import open_data as open_data
    from onnxprune.errors import BenchmarkError as BenchmarkError
    from onnxprune.errors import DataError as DataError
    from onnxprune.errors import ModelError as ModelError
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.errors import PlanError as PlanError
    from onnxprune.errors import RewriteError as RewriteError
    from onnxprune.errors import TrainingError as TrainingError
    from onnxprune.errors import UsageError as UsageError
    from onnxprune.errors import VerificationError as VerificationError
    from onnxprune.evaluation.measure import evaluate as evaluate
    from onnxprune.importance import criterion as criterion
    from onnxprune.importance import score as score
    from onnxprune.model.file import Model as Model
    from onnxprune.model.file import load as load
    from onnxprune.model.file import save as save
    from onnxprune.planning.plan import PrunePlan as PrunePlan
    from onnxprune.planning.plan import apply_plan as apply_plan
    from onnxprune.rewrite.verify import Verification as Verification
    from onnxprune.settings import Augmentation as Augmentation
    from onnxprune.settings import BenchmarkSettings as BenchmarkSettings
    from onnxprune.settings import Constraints as Constraints
    from onnxprune.settings import LatencySettings as LatencySettings
    from onnxprune.settings import LossSettings as LossSettings
    from onnxprune.settings import PlanSettings as PlanSettings
    from onnxprune.settings import ShrinkSettings as ShrinkSettings
    from onnxprune.settings import Target as Target
    from onnxprune.settings import TrainSettings as TrainSettings
    from onnxprune.trace import ChannelGraph as ChannelGraph
    from onnxprune.trace import Group as Group
    from onnxprune.trace import Pin as Pin
    from onnxprune.trace import Slice as Slice
    from onnxprune.trace import Unit as Unit
    from onnxprune.trace.pruned_graph import PrunedGraph as PrunedGraph
    from onnxprune.train.finetune import FineTuned as FineTuned
    from onnxprune.train.finetune import finetune as finetune
    from onnxprune.workflow.analysis import TracedModel as TracedModel
    from onnxprune.workflow.analysis import analyze as analyze
    from onnxprune.workflow.planning import plan as plan
    from onnxprune.workflow.planning import read_plan as read_plan
    from onnxprune.workflow.pruning import Pruned as Pruned
    from onnxprune.workflow.pruning import as_graphsurgeon as as_graphsurgeon
    from onnxprune.workflow.pruning import prove as prove
    from onnxprune.workflow.pruning import prune as prune
    from onnxprune.workflow.pruning import repair as repair
    from onnxprune.workflow.shrinking import Shrunk as Shrunk
    from onnxprune.workflow.shrinking import shrink as shrink
    from onnxprune.workflow.verifying import verify as verify

_ERRORS = (
    *("BenchmarkError", "DataError", "ModelError", "OnnxPruneError", "PlanError", "RewriteError", "TrainingError"),
    *("UsageError", "VerificationError"),
)
_SETTINGS = (
    *("Augmentation", "BenchmarkSettings", "Constraints", "LatencySettings", "LossSettings", "PlanSettings"),
    *("ShrinkSettings", "Target", "TrainSettings"),
)
_HOMES = {
    "benchmarking.run": ("benchmark",),
    "cost.cost": ("Cost", "model_cost"),
    "data": ("open_data",),
    "errors": _ERRORS,
    "evaluation.measure": ("evaluate",),
    "importance": ("criterion", "score"),
    "model.file": ("Model", "load", "save"),
    "planning.plan": ("PrunePlan", "apply_plan"),
    "rewrite.verify": ("Verification",),
    "settings": _SETTINGS,
    "trace": ("ChannelGraph", "Group", "Pin", "Slice", "Unit"),
    "trace.pruned_graph": ("PrunedGraph",),
    "train.finetune": ("FineTuned", "finetune"),
    "workflow.analysis": ("TracedModel", "analyze"),
    "workflow.planning": ("plan", "read_plan"),
    "workflow.pruning": ("Pruned", "as_graphsurgeon", "prove", "prune", "repair"),
    "workflow.shrinking": ("Shrunk", "shrink"),
    "workflow.verifying": ("verify",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether they are imported yet or not."""
    return sorted({*globals(), *_HOME})
