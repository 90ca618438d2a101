"""The stages of `shrink`: each makes a model of the best one so far, by one function of the workflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import VerificationError
from onnxprune.model.file import Model
from onnxprune.planning.plan import PrunePlan
from onnxprune.progress import Progress, silent
from onnxprune.settings import CleanSettings, PruneSettings, QuantizeSettings
from onnxprune.settings.declare import Settings
from onnxprune.settings.pipeline import StageName
from onnxprune.settings.pruning import LIMIT, PLANNING
from onnxprune.workflow.cleaning import Cleaned, clean
from onnxprune.workflow.drop import told_before
from onnxprune.workflow.outlook import Outlook
from onnxprune.workflow.prune_model import PruneResult, prune_model
from onnxprune.workflow.quantizing import Quantized, quantize
from onnxprune.workflow.search import TRIALS

CHOICES = ("kind", "calibration", "weight_bits", "objective")
"""Settings of `quantize` that a form makes needless."""

CHOSEN = (*PLANNING, "max_drop", "minimize", "sensitivity")
"""Settings of `prune` that a plan makes needless."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a stage is expected to bring.

    Attributes:
        stage: the stage.
        what: this in words.
        size: bytes of the file afterwards, of each stage alone; None if that isn't known.
        seconds: the time that it takes, roughly.
        skipped: why it won't be tried; empty if it will.
    """

    stage: StageName
    what: str
    size: int | None = None
    seconds: float = 0.0
    skipped: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What is known of a model and its data before any stage ran.

    Attributes:
        outlook: estimates of what is to be had.
        seconds: the time of running the model on a sample.
        layers: number of its layers.
        groups: number of its groups of channels.
        repair_runs: how many runs a repair takes, for each sample.
        samples: number of samples to work with; 0 without data.
        limited: whether the user says how much to prune.
    """

    outlook: Outlook
    seconds: float
    layers: int
    groups: int
    repair_runs: float
    samples: int
    limited: bool


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
        milder: settings for another try, if this changes answers too much; empty if there is no milder way.
        found: the result of the stage's own function.
    """

    model: Model
    told: str
    again: Mapping[str, Any] = field(default_factory=dict)
    milder: Mapping[str, Any] = field(default_factory=dict)
    found: Cleaned | PruneResult | Quantized | None = None


def _clean_expected(now: Situation) -> Expected:
    nodes, size = now.outlook.cleaning.nodes, now.outlook.cleaning.bytes[1]
    what = "fewer nodes" if nodes is None else f"at most {nodes[1]:,} of {nodes[0]:,} nodes"
    return Expected("clean", what, size, 15 + 60 * now.seconds)


def _clean(task: Task) -> Made:
    found = clean(task.model, task.settings, progress=task.progress)
    if found.best is None:
        raise VerificationError("OP507", "nothing makes it better")
    told = f"{found.before.nodes:,} nodes → {found.best.nodes:,}, by {found.best.name}"
    return Made(found.model, told, {"optimizers": (found.best.name,), "timed": False}, found=found)


def _prune_expected(now: Situation) -> Expected:
    found = now.outlook.pruning
    if found is None:
        return Expected("prune", "", skipped="no channel can be removed")
    if not (now.limited or now.samples):
        return Expected("prune", "", skipped="it needs a `target`, or inputs to limit the loss by (`data`)")
    calibrating, choosing = min(LIMIT, now.samples // 2), min(2000, now.samples // 4)
    trials = 1 if now.limited else TRIALS
    runs = calibrating * (0.25 * now.groups + 2) + trials * (now.repair_runs * calibrating + 2 * choosing)
    what = "what is asked for" if now.limited else "as much as the drop allows"
    return Expected("prune", f"{what}; half of the MACs would leave this file", found.bytes, 5 + now.seconds * runs)


def _prune(task: Task) -> Made:
    with told_before():
        found = prune_model(task.model, task.settings, progress=task.progress)
    if not (found.plan.removed or found.plan.blocks or found.analysis.moves):
        raise VerificationError("OP507", "nothing need be removed")
    before, after = found.plan.before["macs"], found.plan.after["macs"]
    share = f"{1 - after / before:.0%} of the MACs removed" if before else "channels removed"
    settings = task.settings
    given = settings.sensitivity is not None and settings.max_drop is None  # curves that a recipe can't hold
    written = (settings.planning.timed or given) and not found.tuned
    again: dict[str, Any] = dict.fromkeys(CHOSEN) | {"plan": _compact(found.plan)} if written else {}
    if (tuned := found.tuned) is not None and len(tuned.history) == tuned.epochs:
        again |= {"repair_minutes": None, "repair_epochs": tuned.epochs} if settings.repair_minutes else {}
    proof = found.pruned.verification
    proved = ", proved" if proof is not None and proof.passed and not proof.unproved else ""
    trained = ", trained" if found.tuned is not None and found.tuned.kept == "after" else ""
    told = share + proved + (", repaired" if found.repairs else "") + trained
    return Made(found.model, told, again, _milder(task.settings, found.plan), found)


def _compact(plan: PrunePlan) -> str:
    return json.dumps(json.loads(plan.to_json())) + "\n"


def _milder(settings: PruneSettings, plan: PrunePlan) -> dict[str, Any]:
    """Return a smaller budget for pruning: half the drop or ratio, or limits half way to what there was."""
    if settings.max_drop:
        return {"max_drop": settings.max_drop / 2}
    if settings.planning.ratio:
        return {"ratio": settings.planning.ratio / 2}
    before: dict[str, Any] = {**plan.before, "latency": plan.settings.get("latency", {}).get("original_seconds")}
    targets = tuple(t.eased(before[t.quantity]) for t in settings.planning.targets if before.get(t.quantity))
    return {"target": targets} if targets else {}


def _quantize_expected(now: Situation) -> Expected:
    size = now.outlook.int8
    if size is None:
        return Expected("quantize", "", skipped="no layer has weights of real numbers")
    if not now.samples:
        return Expected("quantize", "", skipped="it needs inputs to find ranges and errors with (`data`)")
    runs = 96 * 3 + 64 * (10 + now.layers)
    return Expected("quantize", "INT8 weights", size, 10 + 0.3 * now.layers + now.seconds * runs)


def _quantize(task: Task) -> Made:
    found = quantize(task.model, task.settings, progress=task.progress)
    form = {"kind": found.best.kind, **found.best.about, "kept": list(found.best.kept)}
    kept = f", {len(found.best.kept)} nodes in float" if found.best.kept else ""
    again = {"form": form, "timed": None, **dict.fromkeys(CHOICES)}
    milder = {} if task.settings.form else {"max_error": found.best.error / 4}
    return Made(found.model, f"{found.best.kind}{kept}", again, milder, found)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: its name.
        settings: the class of its settings.
        expected: says what it is expected to bring.
        run: what it does.
        lossy: whether it may change answers.
    """

    name: StageName
    settings: type[Settings]
    expected: Callable[[Situation], Expected]
    run: Callable[[Task], Made]
    lossy: bool = True


STAGES: tuple[Stage, ...] = (
    Stage("clean", CleanSettings, _clean_expected, _clean, lossy=False),
    Stage("prune", PruneSettings, _prune_expected, _prune),
    Stage("quantize", QuantizeSettings, _quantize_expected, _quantize),
)
"""The stages, in order."""
