"""Pruning in several steps, with training in between.

Each step removes the same share of what remains, and the network recovers before the next step: later channels are
chosen by weights that have adapted to the earlier removals (H. Li et al., "Pruning filters for efficient ConvNets",
ICLR 2017, among others).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import PlanError
from onnxprune.model.file import Source
from onnxprune.planning.budget import with_names
from onnxprune.planning.plan import PrunePlan, apply_plan, plan_of
from onnxprune.planning.signature import fingerprints, note_changes, sign
from onnxprune.progress import Progress, silent, within
from onnxprune.recover import Method
from onnxprune.settings.planning import PlanSettings, Target
from onnxprune.settings.pruning import LIMIT
from onnxprune.settings.training import TrainSettings
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.inputs import batches_of
from onnxprune.workflow.planning import plan
from onnxprune.workflow.pruning import Pruned, prune, repair
from onnxprune.workflow.resolution import at_chosen

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """One step of pruning and training.

    Attributes:
        plan: a plan for the original, with everything removed so far.
        pruned: the model before training, with the plan and proof of this step.
        tuned: the model after training.
    """

    plan: PrunePlan
    pruned: Pruned
    tuned: FineTuned

    def __str__(self) -> str:
        """Return the remaining share of MACs, and the gain by training."""
        left, tuned, gain = self.plan.after["macs"] / self.plan.before["macs"], self.tuned, ""
        if tuned.metric is not None and tuned.before is not None and tuned.after is not None:
            before, after = (e[tuned.metric].model.value for e in (tuned.before, tuned.after))
            gain = f", {tuned.metric} {before:.4g} → {after:.4g}"
        return f"{left:.1%} of the MACs{gain}"


def prune_iteratively(
    model: Source | TracedModel,
    data: Dataset,
    settings: PlanSettings,
    steps: int,
    *,
    training: TrainSettings | None = None,
    validation: Dataset | None = None,
    method: Method | None = "reconstruct",
    rewind: Source | None = None,
    progress: Progress = silent,
) -> tuple[ModelProto, tuple[Round, ...]]:
    """Prune a model to a target in several steps, and train it after each with the original as teacher.

    Args:
        model: the model.
        data: samples to train on, to choose channels with and to repair with; labels are optional.
        settings: how to plan; they need a target.
        steps: the number of steps.
        training: how to train after each step.
        validation: samples for validation.
        method: how to repair before training; None for no repair.
        rewind: the same network with the weights of an early stage of its training. Before training, the remaining
            weights are reset to these (Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019; Renda et al.,
            "Comparing rewinding and fine-tuning", ICLR 2020), and nothing is repaired.
        progress: called with the phases of each step.

    Returns:
        The final model, and the steps.

    Raises:
        PlanError: there is no target (OP302), or no step (OP303); a step can't reach its part of the target (OP301);
            the model to rewind to is another network (OP307).
        VerificationError: a pruned model isn't the masked original.
        TrainingError: the model can't be trained.
    """
    if not settings.targets:
        raise PlanError("OP302", "pruning in steps needs a target", hint='for example Target("macs", 0.5)')
    if any(target.absolute for target in settings.timed):
        raise PlanError("OP302", "pruning in steps needs a latency relative to the original's", where="target")
    if steps < 1:
        raise PlanError("OP303", f"{steps} is out of range: must be at least 1", where="steps")
    original = analyze(model)
    original, settings = at_chosen(original, settings)
    policies = original.graph.policies
    early = None if rewind is None else analyze(rewind, policies=policies)
    costs = original.cost.totals()
    shares = tuple(Target(t.quantity, _share(t, costs) ** (1 / steps)) for t in settings.targets)
    settings = replace(settings, target=shares, constraints=with_names(settings.constraints, original.graph))
    calibration = data.subset(range(min(LIMIT, len(data))))
    analysis, rounds = original, list[Round]()
    for number in range(1, steps + 1):
        part = within(progress, f"step {number} of {steps}")
        batches = batches_of(calibration, analysis.graph)  # whose states have the sizes that the last step left
        part("score and plan", 0, None)
        made = plan(analysis, settings, data=batches, progress=part)
        part("rewrite and verify", 0, None)
        pruned = prune(analysis, made)
        whole = _joined(original, rounds[-1].plan, made) if rounds else made
        start = pruned.proto
        if early is not None:
            start = prune(early, replace(whole, model=early.model.sha256)).proto
        elif method is not None:
            repair(pruned, batches, method=method, seed=settings.seed, progress=part)
        tuned = finetune(
            start, data, teacher=original.original, validation=validation, settings=training, progress=part
        )
        rounds.append(Round(whole, pruned, tuned))
        log.info("step %d of %d: %s", number, steps, rounds[-1])
        analysis = analyze(tuned.proto, policies=policies)
    final, rewritten = rounds[-1].tuned.proto, prune(original, rounds[-1].plan, check=False).proto
    sign(final, rounds[-1].plan)  # all steps are one plan for the original
    note_changes(final, fingerprints(rewritten), "training")
    return final, tuple(rounds)


def _share(target: Target, costs: Mapping[str, int]) -> float:
    """Return the limit of a target as a share of the original's cost."""
    return min(1.0, target.value / max(costs[target.quantity], 1)) if target.absolute else target.value


def _joined(original: TracedModel, first: PrunePlan, second: PrunePlan) -> PrunePlan:
    """Return one plan for two: the second is for the model that the first leaves."""
    slots = original.graph.slots
    removed = {name: {axis: list(gone) for axis, gone in axes.items()} for name, axes in first.removed.items()}
    for name, axes in second.removed.items():
        for axis, gone in axes.items():
            before = removed.setdefault(name, {}).setdefault(axis, [])
            left = np.setdiff1d(np.arange(len(slots[name, axis])), before)
            before.extend(left[list(gone)].tolist())
    both = replace(
        first,
        removed={n: {axis: tuple(sorted(gone)) for axis, gone in axes.items()} for n, axes in removed.items()},
        blocks=(*first.blocks, *second.blocks),
    )
    joined = plan_of(apply_plan(original.graph, both), first.model, first.settings)
    whole = original.cost.totals() if original.whole is not None else joined.before
    return replace(joined, before=whole, resolution=original.moves.resolution)
