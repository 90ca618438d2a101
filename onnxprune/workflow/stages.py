"""The stages of `shrink`: each makes a model of the best one so far, by one function of the workflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import VerificationError
from onnxprune.model.file import Model
from onnxprune.progress import Progress, silent
from onnxprune.settings import CleanSettings, PruneSettings, QuantizeSettings
from onnxprune.settings.declare import Settings
from onnxprune.settings.pipeline import StageName
from onnxprune.workflow.cleaning import NORMALIZED, clean
from onnxprune.workflow.prune_model import prune_model
from onnxprune.workflow.quantizing import quantize

CHOICES = ("kind", "calibration", "weight_bits", "objective")
"""Settings of `quantize` that a form makes needless."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a stage is to do.

    Attributes:
        model: the best model so far.
        settings: the settings of the stage.
        progress: called with phases and their parts.
    """

    model: Model
    settings: Any
    progress: Progress = silent


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a stage made.

    Attributes:
        model: the model.
        told: what was done, in words.
        again: settings of the stage that make the same again, without choosing; None for those that don't apply then.
    """

    model: Model
    told: str
    again: Mapping[str, Any] = field(default_factory=dict)


def _clean(task: Task) -> Made:
    found = clean(task.model, task.settings, progress=task.progress)
    if found.best is None:
        raise VerificationError("OP507", "nothing makes it better")
    name = found.best.name
    again = {"optimizers": () if name == NORMALIZED else (name,), "timed": False}
    return Made(found.model, f"{found.before.nodes:,} nodes → {found.best.nodes:,}, by {name}", again)


def _prune(task: Task) -> Made:
    found = prune_model(task.model, task.settings, progress=task.progress)
    if not (found.plan.removed or found.plan.blocks or found.analysis.resized):
        raise VerificationError("OP507", "nothing need be removed")
    before, after = found.plan.before["macs"], found.plan.after["macs"]
    share = f"{1 - after / before:.0%} of the MACs removed" if before else "channels removed"
    return Made(found.model, share + (", repaired" if found.repairs else ""))


def _quantize(task: Task) -> Made:
    found = quantize(task.model, task.settings, progress=task.progress)
    form = {"kind": found.best.kind, **found.best.about, "kept": list(found.best.kept)}
    kept = f", {len(found.best.kept)} nodes in float" if found.best.kept else ""
    return Made(found.model, f"{found.best.kind}{kept}", {"form": form, "timed": None, **dict.fromkeys(CHOICES)})


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: its name.
        settings: the class of its settings.
        run: what it does.
        lossy: whether it may change answers.
    """

    name: StageName
    settings: type[Settings]
    run: Callable[[Task], Made]
    lossy: bool = True


STAGES: tuple[Stage, ...] = (
    Stage("clean", CleanSettings, _clean, lossy=False),
    Stage("prune", PruneSettings, _prune),
    Stage("quantize", QuantizeSettings, _quantize),
)
"""The stages, in order."""
