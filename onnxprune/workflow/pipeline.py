"""The main road: load and trace a model, plan, prune, prove."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.channels.align import Attention, Grouped
from onnxprune.errors import PlanError, VerificationError
from onnxprune.importance import score
from onnxprune.latency import LatencyResult, Options, plan_for_latency
from onnxprune.model.file import Model, Source, load, outline
from onnxprune.model.stream import Batches
from onnxprune.normalize import normalize
from onnxprune.planning.budget import Constraints, Target, choose
from onnxprune.planning.plan import PrunePlan, apply_plan, plan_of
from onnxprune.planning.residual_blocks import choose_blocks, without_blocks
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import Verification, generate_inputs, verify
from onnxprune.sensitivity import (
    Curve,
    OutputError,
    added_errors,
    measure,
    rest_of,
    share_out,
    spend,
    spend_blocks,
)
from onnxprune.trace import ChannelGraph, trace
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.version import __version__

Allocation = Literal["uniform", "global", "reconstruction"]


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How to plan.

    Attributes:
        ratio: share of the channels to remove; or
        target: a limit on a cost.
        criterion: what makes a channel important, see `onnxprune.importance`.
        allocation: the same share of every group, the least important channels of all, or where the measured error of
            the outputs grows least for what is saved.
        constraints: limits on what may leave a group.
        seed: for criteria that draw lots.
        remove_blocks: how many residual blocks to remove first, those that matter least; "auto" for as many as make the
            error least (the allocation "reconstruction" only).
    """

    ratio: float | None = None
    target: Target | None = None
    criterion: str = "l2"
    allocation: Allocation = "uniform"
    constraints: Constraints = field(default_factory=Constraints)
    seed: int = 0
    remove_blocks: int | Literal["auto"] = 0


@dataclass(frozen=True, slots=True)
class TracedModel:
    """A loaded and traced model.

    Attributes:
        model: the model as loaded, without the data of its weights.
        graph: its channel dependencies; ``graph.proto`` is the normalized model.
        attention: what leaves an attention: whole heads, or a part of each head's width.
        grouped: what leaves a grouped convolution: as many channels of every group, or whole groups.
    """

    model: Model
    graph: ChannelGraph
    attention: Attention = "heads"
    grouped: Grouped = "channels"


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model with its proof.

    Attributes:
        proto: the model.
        plan: what was removed.
        verification: the oracle's verdict, None if it wasn't asked.
    """

    proto: ModelProto
    plan: PrunePlan
    verification: Verification | None


def analyze(
    source: Source,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    attention: Attention = "heads",
    grouped: Grouped = "channels",
    consume: bool = False,
) -> TracedModel:
    """Load a model and trace its channel dependencies.

    Args:
        source: a path, bytes, a ModelProto or a graphsurgeon graph.
        input_shapes: sizes for inputs with symbolic dimensions.
        attention: what leaves an attention: whole heads, or a part of each head's width.
        grouped: what leaves a grouped convolution: as many channels of every group, or whole groups.
        consume: whether a Model that is given may be used up, which saves a copy of its weights.

    Raises:
        ModelError: the model can't be read or understood.
        UsageError: an input shape doesn't fit.
    """
    model = load(source)
    known = outline(model)
    proto = normalize(model.proto, consume=consume or model is not source)
    del model
    return TracedModel(known, trace(proto, input_shapes, attention=attention, grouped=grouped), attention, grouped)


def make_plan(
    analysis: TracedModel,
    settings: PlanSettings,
    *,
    batches: Batches | None = None,
    curves: Sequence[Curve] | None = None,
    latency: Options | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PrunePlan:
    """Choose what to remove.

    Args:
        analysis: the model.
        settings: how to choose.
        batches: gives inputs, anew at each call, for criteria and allocations about what the model does with them.
        curves: sensitivities for the allocation "reconstruction", if they were measured before.
        latency: where a target on latency is meant; on the CPU by default.
        progress: told how many groups, or how many networks, of how many are measured.

    Raises:
        PlanError: the settings are contradictory or out of range, the target is out of reach, there are too few
            residual blocks (OP315), or inputs are needed (OP312).
        ModelError: a weight isn't finite, or the model can't be run.
        UsageError: there are no inputs (OP604).
    """
    kept, constraints, target = PrunedGraph(analysis.graph), settings.constraints, settings.target
    if settings.remove_blocks:
        if curves is not None:
            raise PlanError("OP302", "sensitivities that were measured before don't go with --remove-blocks")
        if settings.remove_blocks == "auto":
            kept, curves = _spend_blocks(analysis, settings, batches, progress)
        else:
            kept = without_blocks(kept.graph, choose_blocks(kept.graph, settings.remove_blocks, batches))
        analysis, target = replace(analysis, graph=kept.graph), rest_of(target, kept)
    graph = kept.graph
    timed = None
    if target is not None and target.quantity == "latency":
        timed = partial(
            plan_for_latency, graph, constraints=constraints, target=target, options=latency, progress=progress
        )
    found: LatencyResult | None = None
    if settings.allocation == "reconstruction":
        curves = sensitivities(analysis, settings, batches, progress=progress) if curves is None else curves
        if timed is not None:
            found = timed(added_errors(graph, curves), errors=True)
        else:
            removed = spend(graph, curves, constraints, ratio=settings.ratio, target=target)
    else:
        scores = score(graph, settings.criterion, seed=settings.seed, batches=batches)
        if timed is not None:
            found = timed(scores)
        else:
            removed = choose(
                graph, scores, constraints, ratio=settings.ratio, target=target, allocation=settings.allocation
            )
    notes: dict[str, Any] = {"attention": analysis.attention, "grouped": analysis.grouped}
    if found is not None:
        removed, notes["latency"] = found.removed, found.fields()
    return plan_of(kept.without(removed), analysis.model.sha256, {**asdict(settings), **notes})


def _spend_blocks(
    analysis: TracedModel, settings: PlanSettings, batches: Batches | None, progress: Callable[[int, int], None]
) -> tuple[PrunedGraph, Sequence[Curve]]:
    """Remove as many residual blocks as pay."""
    counted = settings.target is not None and settings.target.quantity != "latency"
    if settings.target is None or not counted or settings.allocation != "reconstruction":
        cause = (
            "as many blocks as pay: that takes a target other than latency, and the allocation by reconstruction error"
        )
        raise PlanError("OP302", cause, hint="give --data and, for example, --target macs=50%; or a number of blocks")

    def curves(graph: ChannelGraph) -> list[Curve]:
        return sensitivities(replace(analysis, graph=graph), settings, batches, progress=progress)

    settings.target.check()
    return spend_blocks(analysis.graph, settings.target, settings.constraints, _needed(batches), curves)


def sensitivities(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches | None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Curve]:
    """Measure how the outputs' error grows with what is removed of each group.

    Raises:
        PlanError: there are no inputs to measure on (OP312), or the criterion fails.
        ModelError: the model can't be run on the inputs.
        UsageError: there are no inputs, or no output varies with them (OP604).
    """
    graph, (fitted, held_back) = analysis.graph, share_out(_needed(batches))
    judge = OutputError(graph.proto, held_back)
    curves = []
    for curve in measure(
        graph, fitted, judge, criterion=settings.criterion, constraints=settings.constraints, seed=settings.seed
    ):
        curves.append(curve)
        progress(len(curves), len(graph.groups))
    return curves


def _needed(batches: Batches | None) -> Batches:
    if batches is None:
        hint = "give some, without labels, with --data; or use the allocation uniform or global"
        raise PlanError("OP312", "the allocation by reconstruction error needs inputs", hint=hint)
    return batches


def prune(
    analysis: TracedModel,
    plan: PrunePlan,
    *,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    check: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Pruned:
    """Carry out a plan and prove the result.

    Args:
        analysis: the model.
        plan: a plan for it.
        inputs: inputs for the proof; generated ones by default.
        check: whether to run the masked oracle.
        tolerance: largest error allowed, see `verify`.
        seed: of generated inputs.

    Returns:
        The pruned model; its metadata tells the plan's digest and settings.

    Raises:
        PlanError: the plan is for another model (OP306) or doesn't fit it.
        RewriteError: a node can't be adapted.
        VerificationError: the pruned model isn't the masked original (OP501).
    """
    if plan.model != analysis.model.sha256:
        hint = "make a new plan with `onnxprune plan`"
        raise PlanError("OP306", "the plan was made for another model", where=plan.model[:12], hint=hint)
    kept = apply_plan(analysis.graph, plan)
    proto = rewrite(kept)
    _sign(proto, plan)
    if not check:
        return Pruned(proto, plan, None)
    verification = prove(kept, proto, inputs=inputs, tolerance=tolerance, seed=seed)
    if not verification.passed:
        worst = max(verification.outputs, key=lambda o: o.error)
        cause = f"relative error {verification.error:.3g} exceeds {verification.tolerance:.3g}"
        raise VerificationError("OP501", cause, where=f'output "{worst.name}"')
    return Pruned(proto, plan, verification)


def prove(
    kept: PrunedGraph,
    proto: ModelProto,
    *,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Run the masked oracle on a traced model and its pruned version.

    Args:
        kept: the traced model and what was removed from it.
        proto: the pruned model.
        inputs: inputs for both; generated from the seed by default.
        tolerance: largest error allowed.
        seed: seed of generated inputs.
    """
    graph = kept.graph
    data = generate_inputs(graph.proto, graph.shapes.inputs, seed) if inputs is None else inputs
    return verify(kept, proto, data, tolerance=tolerance, seed=None if inputs is not None else seed)


def _sign(proto: ModelProto, plan: PrunePlan) -> None:
    """Write the plan's digest and settings into the model's metadata."""
    notes = {
        "onnxprune.version": __version__,
        "onnxprune.plan": plan.digest,
        "onnxprune.source": plan.model,
        "onnxprune.settings": json.dumps(plan.settings, sort_keys=True),
    }
    for entry in [e for e in proto.metadata_props if e.key in notes]:
        proto.metadata_props.remove(entry)
    for key, value in notes.items():
        proto.metadata_props.add(key=key, value=value)


def read_plan(path: Path) -> PrunePlan:
    """Read a plan from a file.

    Raises:
        PlanError: it can't be read or is no plan (OP305).
    """
    try:
        return PrunePlan.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise PlanError("OP305", f"can't be read: {error.strerror}", where=str(path)) from error
