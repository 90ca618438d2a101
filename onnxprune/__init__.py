"""Prune ONNX models by rewriting their graphs, provably right.

The workflow is a function each: `load` a model, `analyze` it, `plan` what to remove, `prune`, `repair` and `finetune`
the result, `evaluate`, `verify` and `benchmark` it, `save` it. `prune_model`, `clean`, `quantize`, `pack`
and `unpack` do what the commands of these names do, and `shrink` combines them.

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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxprune.benchmarking.run import benchmark as benchmark
    from onnxprune.cost.cost import Cost as Cost, model_cost as model_cost
    from onnxprune.data import open_data as open_data
    from onnxprune.errors import (
        BenchmarkError as BenchmarkError,
        DataError as DataError,
        ModelError as ModelError,
        OnnxPruneError as OnnxPruneError,
        PlanError as PlanError,
        RewriteError as RewriteError,
        TrainingError as TrainingError,
        UsageError as UsageError,
        VerificationError as VerificationError,
    )
    from onnxprune.evaluation.measure import evaluate as evaluate
    from onnxprune.importance import criterion as criterion, score as score
    from onnxprune.model.file import Model as Model, load as load, save as save
    from onnxprune.planning.plan import PrunePlan as PrunePlan, apply_plan as apply_plan
    from onnxprune.rewrite.verify import Verification as Verification
    from onnxprune.runtime.library import custom_ops as custom_ops
    from onnxprune.settings import (
        Augmentation as Augmentation,
        BenchmarkSettings as BenchmarkSettings,
        CleanSettings as CleanSettings,
        Constraints as Constraints,
        LatencySettings as LatencySettings,
        LossSettings as LossSettings,
        PackSettings as PackSettings,
        PlanSettings as PlanSettings,
        PruneSettings as PruneSettings,
        QuantizeSettings as QuantizeSettings,
        ShrinkSettings as ShrinkSettings,
        SparsifySettings as SparsifySettings,
        SweepSettings as SweepSettings,
        Target as Target,
        TrainSettings as TrainSettings,
        UnpackSettings as UnpackSettings,
    )
    from onnxprune.sweeping.session import sweep as sweep
    from onnxprune.trace import ChannelGraph as ChannelGraph, Group as Group, Pin as Pin, Slice as Slice, Unit as Unit
    from onnxprune.trace.pruned_graph import PrunedGraph as PrunedGraph
    from onnxprune.train.finetune import FineTuned as FineTuned, finetune as finetune
    from onnxprune.workflow.analysis import TracedModel as TracedModel, analyze as analyze
    from onnxprune.workflow.calibration import (
        CalibrationReader as CalibrationReader,
        calibration_reader as calibration_reader,
    )
    from onnxprune.workflow.cleaning import Cleaned as Cleaned, clean as clean
    from onnxprune.workflow.packing import Packed as Packed, Unpacked as Unpacked, pack as pack, unpack as unpack
    from onnxprune.workflow.pipeline import shrink as shrink
    from onnxprune.workflow.planning import plan as plan, read_plan as read_plan
    from onnxprune.workflow.prune_model import PruneResult as PruneResult, prune_model as prune_model
    from onnxprune.workflow.pruning import (
        Pruned as Pruned,
        as_graphsurgeon as as_graphsurgeon,
        prove as prove,
        prune as prune,
        repair as repair,
    )
    from onnxprune.workflow.quantizing import Quantized as Quantized, quantize as quantize
    from onnxprune.workflow.sparsifying import Sparsified as Sparsified, sparsify as sparsify
    from onnxprune.workflow.verdicts import ShrinkResult as ShrinkResult
    from onnxprune.workflow.verifying import verify as verify

# Where each name comes from.
_HOMES = {
    "benchmarking.run": "benchmark",
    "cost.cost": "Cost model_cost",
    "data": "open_data",
    "errors": "BenchmarkError DataError ModelError OnnxPruneError PlanError RewriteError TrainingError UsageError "
    "VerificationError",
    "evaluation.measure": "evaluate",
    "importance": "criterion score",
    "model.file": "Model load save",
    "planning.plan": "PrunePlan apply_plan",
    "rewrite.verify": "Verification",
    "runtime.library": "custom_ops",
    "settings": "Augmentation BenchmarkSettings CleanSettings Constraints LatencySettings LossSettings PackSettings "
    "PlanSettings PruneSettings QuantizeSettings ShrinkSettings SparsifySettings SweepSettings Target TrainSettings "
    "UnpackSettings",
    "sweeping.session": "sweep",
    "trace": "ChannelGraph Group Pin Slice Unit",
    "trace.pruned_graph": "PrunedGraph",
    "train.finetune": "FineTuned finetune",
    "workflow.analysis": "TracedModel analyze",
    "workflow.calibration": "CalibrationReader calibration_reader",
    "workflow.cleaning": "Cleaned clean",
    "workflow.packing": "Packed Unpacked pack unpack",
    "workflow.pipeline": "shrink",
    "workflow.verdicts": "ShrinkResult",
    "workflow.planning": "plan read_plan",
    "workflow.pruning": "Pruned as_graphsurgeon prove prune repair",
    "workflow.quantizing": "Quantized quantize",
    "workflow.sparsifying": "Sparsified sparsify",
    "workflow.prune_model": "PruneResult prune_model",
    "workflow.verifying": "verify",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)

# Names of 0.1 that are accepted for one release.
_RENAMED = {
    "Analysis": "TracedModel",
    "Guards": "Constraints",
    "Kept": "PrunedGraph",
    "Settings": "PlanSettings",
    "analyse": "analyze",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _RENAMED:
        import warnings

        warnings.warn(f"onnxprune.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether they are imported yet or not."""
    return sorted({*globals(), *_HOME})
