"""Choosing what to remove."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from onnxprune.errors import PlanError, UsageError
from onnxprune.importance import score
from onnxprune.latency import Options, plan_for_latency
from onnxprune.model.file import Source
from onnxprune.model.stream import Batches
from onnxprune.planning.budget import choose
from onnxprune.planning.plan import PrunePlan, plan_of
from onnxprune.planning.residual_blocks import choose_blocks, without_blocks
from onnxprune.progress import Progress, silent
from onnxprune.runtime.provider import parse_provider
from onnxprune.sensitivity import (
    Curve,
    OutputError,
    added_errors,
    measure,
    read_record,
    rest_of,
    share_out,
    spend,
    spend_blocks,
)
from onnxprune.settings import LatencySettings, PlanSettings, build
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.inputs import Samples, batches_of

log = logging.getLogger(__name__)

Sensitivities = Sequence[Curve] | str | os.PathLike[str]


def plan(
    model: Source | TracedModel,
    settings: PlanSettings | None = None,
    *,
    data: Samples = None,
    sensitivity: Sensitivities | None = None,
    latency: Options | LatencySettings | None = None,
    progress: Progress = silent,
    **options: Any,
) -> PrunePlan:
    """Choose what to remove from a model.

    Args:
        model: the model.
        settings: how to choose; or
        data: inputs, labels not needed, for criteria and allocations about what the model does with them: what
            `open_data` takes, a `Dataset`, or a function that returns batches of inputs, the same at each call.
        sensitivity: curves for the allocation "reconstruction" that `analyze_sensitivity` or the command `sensitivity`
            measured, or the command's file.
        latency: where a target on latency is measured; on the CPU by default.
        progress: called with the groups, or the networks, that are measured.
        **options: fields of `PlanSettings` and `Constraints`, instead of settings.

    Raises:
        PlanError: the settings are contradictory or out of range, the target is out of reach (OP301), there are too few
            residual blocks (OP315), or inputs are needed (OP312).
        ModelError: a weight isn't finite, or the model can't be run.
        UsageError: nothing says how much to remove (OP602), or there are no inputs (OP604).

    Example:
        >>> import onnxprune as op
        >>> plan = op.plan("models/digits_resnet.onnx", target=op.Target("macs", 0.5), min_channels=4)
        >>> plan.after["macs"] <= 0.5 * plan.before["macs"]
        True
    """
    if settings is not None and options:
        raise UsageError("OP602", f"settings are given, and {', '.join(options)} besides", hint="give one of them")
    analysis = analyze(model)
    batches = batches_of(data, analysis.graph.proto)
    curves = read_curves(sensitivity, analysis)
    settings = settled(settings or build(PlanSettings, options), data=batches is not None or curves is not None)
    kept, constraints, target = PrunedGraph(analysis.graph), settings.constraints, settings.target
    assert settings.criterion is not None
    if settings.remove_blocks:
        if curves is not None:
            raise PlanError("OP302", "sensitivities that were measured before don't go with `remove_blocks`")
        if settings.remove_blocks == "auto":
            kept, curves = _spend_blocks(analysis, settings, batches, progress)
        else:
            kept = without_blocks(kept.graph, choose_blocks(kept.graph, settings.remove_blocks, batches))
        analysis, target = replace(analysis, graph=kept.graph), rest_of(target, kept)
    graph = kept.graph
    timed = None
    if target is not None and target.quantity == "latency":
        where = latency_options(latency, settings.seed) if isinstance(latency, LatencySettings) else latency
        timed = partial(
            plan_for_latency, graph, constraints=constraints, target=target, options=where, progress=progress
        )
    found = None
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
            allocation: Literal["uniform", "global"] = "global" if settings.allocation == "global" else "uniform"
            removed = choose(graph, scores, constraints, ratio=settings.ratio, target=target, allocation=allocation)
    notes: dict[str, Any] = {"attention": analysis.attention, "grouped": analysis.grouped}
    if found is not None:
        removed, notes["latency"] = found.removed, found.fields()
    made = plan_of(kept.without(removed), analysis.model.sha256, {**asdict(settings), **notes})
    log.debug("planned with %s, %s: MACs %s", settings.criterion, settings.allocation, made.after["macs"])
    return made


def settled(settings: PlanSettings, *, data: bool) -> PlanSettings:
    """Decide what settings leave open.

    Args:
        settings: how to plan; a ratio for some layers, or residual blocks, alone leave everything else as it is.
        data: whether there are inputs, by which more can be judged.

    Raises:
        UsageError: nothing says how much to remove (OP602).
    """
    channels = settings.ratio is not None or settings.target is not None or bool(settings.constraints.ratio_for)
    if not channels and not settings.remove_blocks:
        hint = "set `target` or `ratio`, for example a `target` of half the MACs: macs=50%"
        raise UsageError("OP602", "no budget: how much is to be removed?", hint=hint)
    allocation = settings.allocation or ("reconstruction" if data and channels else "uniform")
    criterion = settings.criterion or ("obs" if allocation == "reconstruction" else "l2")
    ratio = 0.0 if settings.ratio is None and settings.target is None else settings.ratio
    return replace(settings, allocation=allocation, criterion=criterion, ratio=ratio)


def _spend_blocks(
    analysis: TracedModel, settings: PlanSettings, batches: Batches | None, progress: Progress
) -> tuple[PrunedGraph, Sequence[Curve]]:
    """Remove the number of residual blocks that makes the predicted error smallest."""
    counted = settings.target is not None and settings.target.quantity != "latency"
    if settings.target is None or not counted or settings.allocation != "reconstruction":
        cause = "choosing the number of blocks takes a `target` other than latency, and the allocation reconstruction"
        hint = "set `data` and `target`; or give a number of blocks"
        raise PlanError("OP302", cause, where="remove_blocks", hint=hint)

    def curves(graph: ChannelGraph) -> list[Curve]:
        return sensitivities(replace(analysis, graph=graph), settings, batches, progress=progress)

    return spend_blocks(analysis.graph, settings.target, settings.constraints, _needed(batches), curves)


def sensitivities(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches | None,
    *,
    progress: Progress = silent,
) -> list[Curve]:
    """Measure how the outputs' error grows with what is removed of each group.

    Raises:
        PlanError: there are no inputs to measure on (OP312), or the criterion fails.
        ModelError: the model can't be run on the inputs.
        UsageError: there are no inputs, or no output varies with them (OP604).
    """
    graph, (fitted, held_back) = analysis.graph, share_out(_needed(batches))
    judge, criterion = OutputError(graph.proto, held_back), settings.criterion or "obs"
    curves = []
    for curve in measure(
        graph, fitted, judge, criterion=criterion, constraints=settings.constraints, seed=settings.seed
    ):
        curves.append(curve)
        progress("measure sensitivity", len(curves), len(graph.groups))
    return curves


def read_curves(given: Sensitivities | None, analysis: TracedModel) -> Sequence[Curve] | None:
    """Return sensitivities that were measured before.

    Raises:
        PlanError: the file can't be read (OP313), or is about another model (OP306).
    """
    if isinstance(given, str | os.PathLike):
        return list(read_record(Path(given), analysis.model.sha256, analysis.graph).curves.values())
    return given


def _needed(batches: Batches | None) -> Batches:
    if batches is None:
        hint = "give some, without labels, with `data`; or use the allocation uniform or global"
        raise PlanError("OP312", "the allocation by reconstruction error needs inputs", hint=hint)
    return batches


def latency_options(settings: LatencySettings, seed: int) -> Options:
    """Return where a latency is measured; what is measured is kept in the user's cache.

    Raises:
        UsageError: there is no such provider (OP608).
    """
    return Options(parse_provider(settings.provider or "cpu"), settings.threads, cache_folder(os.environ), seed)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where measured layers are kept, by the custom of the system; ONNXPRUNE_CACHE overrides it."""
    if own := environment.get("ONNXPRUNE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune" / "latency"


def read_plan(path: str | os.PathLike[str]) -> PrunePlan:
    """Read a plan from a file.

    Raises:
        PlanError: it can't be read or is no plan (OP305).
    """
    try:
        return PrunePlan.from_json(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise PlanError("OP305", f"can't be read: {error.strerror}", where=str(path)) from error
