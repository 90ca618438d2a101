"""Choose what to remove."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.basis.rotate import used_bases
from onnxprune.cost.cost import cost
from onnxprune.data import is_noise
from onnxprune.errors import PlanError, UsageError
from onnxprune.importance import score
from onnxprune.latency import Options, plan_for_latency
from onnxprune.latency.table import cache_folder
from onnxprune.model.file import Model, Source, load
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches
from onnxprune.planning.budget import Limits, Scores, choose, eligible, with_names
from onnxprune.planning.plan import PrunePlan, plan_of
from onnxprune.planning.residual_blocks import choose_blocks, without_blocks
from onnxprune.progress import Progress, silent
from onnxprune.runtime.provider import parse_provider
from onnxprune.sensitivity import (
    Curve,
    OutputError,
    added_errors,
    curve_of,
    curves_left,
    entry_of,
    few,
    measure,
    read_record,
    share_out,
    spend,
    spend_blocks,
)
from onnxprune.settings import LatencySettings, PlanSettings
from onnxprune.settings.declare import given
from onnxprune.settings.reading import either
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow import tokens
from onnxprune.workflow.analysis import TracedModel, analyze, moved
from onnxprune.workflow.axes import Points, axes_to_try, choose_point
from onnxprune.workflow.bases import in_bases
from onnxprune.workflow.inputs import Samples, batches_of
from onnxprune.workflow.ranks import by_ranks_alone
from onnxprune.workflow.resolution import at_chosen, largest_within, within

log = logging.getLogger(__name__)

_TOLD = 0.99  # of the file's weights, below which the effect of cleaning is told

Sensitivities = Sequence[Curve] | str | os.PathLike[str]


def plan(
    model: Source | TracedModel,
    settings: PlanSettings | None = None,
    *,
    data: Samples = None,
    sensitivity: Sensitivities | None = None,
    latency: Options | LatencySettings | None = None,
    records: Records | None = None,
    progress: Progress = silent,
    **options: Any,
) -> PrunePlan:
    """Choose what to remove from a model.

    Limits are shares of what the model costs as it was given, before it is cleaned: its latency is that of its file.
    The file of a traced model is read again; of one from memory, the cleaned model is timed. If cleaning alone keeps a
    limit, nothing is removed.

    Args:
        model: the model.
        settings: how to plan; `options` are an alternative.
        data: inputs, labels optional, for criteria and allocations that need them: what `open_data` takes, a `Dataset`,
            or a function that returns the same batches of inputs at each call.
        sensitivity: sensitivities measured before, for the allocation "reconstruction": curves, or the file that the
            command `sensitivity` wrote.
        latency: where a latency target is measured; the CPU by default.
        records: the sensitivities that are measured already; filled as others are.
        progress: called after each group or network that is measured.
        **options: fields of `PlanSettings` and `Constraints`.

    Raises:
        PlanError: settings are contradictory (OP302) or out of range (OP303), the target can't be reached (OP301),
            there are too few residual blocks (OP315), inputs are needed (OP312), or the resolution can't be changed
            (OP319).
        ModelError: a weight isn't finite, or the model can't be run.
        UsageError: there is no budget (OP602), or there are no inputs (OP604).

    Examples:
        >>> import onnxprune as op
        >>> plan = op.plan("models/digits_resnet.onnx", target=op.Target("macs", 0.5), min_channels=4)
        >>> plan.after["macs"] <= 0.5 * plan.before["macs"]
        True
    """
    settings = either(PlanSettings, settings, options)
    source = model if isinstance(model, TracedModel) or not settings.timed else load(model)
    analysis = analyze(source)
    settings = replace(settings, constraints=with_names(settings.constraints, analysis.graph))
    batches = batches_of(data, analysis.graph)
    curves = read_curves(sensitivity, analysis)
    settings = settled(settings, data=batches is not None or curves is not None)
    times = latency_options(latency, settings.seed) if isinstance(latency, LatencySettings) else latency
    file = source.proto if isinstance(source, Model) and source.path is None else analysis.model.path
    records = records or Records()

    if curves is None:
        analysis = in_bases(analysis, settings, batches, progress)
    elif "basis" in settings.axes:
        raise PlanError("OP302", "sensitivities that were measured before are of channels in their own bases")
    if settings.size is not None:
        analysis = at_chosen(analysis, settings)[0]
    elif settings.allowed == ("resolution",):
        analysis = largest_within(analysis, settings)
    elif settings.allowed == ("tokens",) and (batches is None or is_noise(data)):
        analysis = tokens.latest_within(analysis, settings)

    def at(changed: TracedModel, own: Sequence[Curve] | None) -> PrunePlan:
        own = curves if own is None and changed is analysis else own
        known = records if changed is analysis else None  # they are of one network
        return _plan_channels(changed, settings, batches, own, times, file, known, progress)

    axes = axes_to_try(analysis, settings, batches, data)
    if not axes or within(analysis, analysis.moves.resolution, settings):
        return at(analysis, None)
    if settings.allowed == ("rank",) and not settings.timed:
        found = by_ranks_alone(analysis, settings, None if is_noise(data) else batches, records, progress)
        return at(moved(analysis, replace(analysis.moves, ranks=found)), None)

    def measured(inputs: Batches) -> Sequence[Curve]:
        if curves is not None:
            return curves
        return sensitivities(analysis, settings, inputs, records=records, progress=progress)

    points = Points(analysis, settings, _needed(batches), data, measured, at, records, progress)
    return choose_point(points, axes) or at(analysis, None)


def _plan_channels(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches | None,
    curves: Sequence[Curve] | None,
    latency: Options | None,
    file: Any,
    records: Records | None,
    progress: Progress,
) -> PrunePlan:
    """Choose what to remove from a traced model, at the resolution that it has.

    Args:
        analysis: the traced model.
        settings: how to plan, settled.
        batches: returns inputs.
        curves: sensitivities measured before.
        latency: where a latency target is measured.
        file: what is timed as the original.
        records: sensitivities measured by a run before; filled with those measured now.
        progress: called after each group or network that is measured.
    """
    before, kept, constraints = analysis.cost.totals(), PrunedGraph(analysis.graph), settings.constraints

    @cache
    def of_whole() -> Sequence[Curve]:
        if curves is not None:
            return curves
        return sensitivities(analysis, settings, batches, records=records, progress=progress)

    if settings.remove_blocks == "auto":
        kept = _spend_blocks(analysis, settings, batches, of_whole, progress)
    elif settings.remove_blocks:
        kept = without_blocks(kept.graph, choose_blocks(kept.graph, settings.remove_blocks, batches))
    graph, counted = kept.graph, settings.counted
    for quantity in {t.quantity for t in counted} & {"params", "size"}:
        if (cleaned := getattr(cost(PrunedGraph(kept.original)), quantity)) < _TOLD * before[quantity]:
            log.info("cleaning alone brings %s to %.1f%% of the file's", quantity, 100 * cleaned / before[quantity])

    @cache
    def measured() -> Sequence[Curve]:
        return curves_left(of_whole(), analysis.graph, graph)

    @cache
    def scores() -> Scores:
        if settings.allocation == "reconstruction":
            return added_errors(graph, measured())
        assert settings.criterion is not None
        return score(graph, settings.criterion, seed=settings.seed, batches=batches, progress=progress)

    removed = np.zeros(graph.unit_count, dtype=bool)
    met = bool(counted) and not constraints.ratio_for and Limits(graph, counted, before).hold(removed)
    if "channels" not in settings.allowed:
        Limits(graph, counted, before).require(removed)
    elif not met and (counted or not settings.timed):
        budget: dict[str, Any] = {"ratio": settings.ratio, "target": counted or None, "whole": before}
        if settings.allocation == "reconstruction":
            removed = spend(graph, measured(), constraints, **budget)
        else:
            allocation: Literal["uniform", "global"] = "global" if settings.allocation == "global" else "uniform"
            removed = choose(graph, scores(), constraints, allocation=allocation, **budget)
    notes: dict[str, Any] = given(analysis.graph.policies)
    if settings.timed:
        found = plan_for_latency(
            graph,
            scores,
            constraints,
            settings.timed,
            latency,
            errors=settings.allocation == "reconstruction",
            at_least=removed if removed.any() else None,
            original=file,
            progress=progress,
        )
        removed, notes["latency"] = found.removed, found.fields()
        if counted:
            Limits(graph, counted, before).require(removed)
    made = plan_of(kept.without(removed), analysis.model.sha256, {**asdict(settings), **notes})
    moves = analysis.moves
    if analysis.whole is not None and not moves.ranks:  # layers in two have other weights
        moves = replace(moves, bases=used_bases(analysis.whole.graph, moves.bases, made.removed))
    changed = {name: getattr(moves, name) for name in ("resolution", "tokens", "ranks", "bases")}
    made = replace(made, before=before, **changed)
    if settings.targets and not (made.removed or made.blocks or made.moves):
        limits = ", ".join(f"{t.quantity}={t.text}" for t in settings.targets)
        log.info("%s holds without removing channels, so none are removed", limits)
    log.debug("planned with %s, %s: MACs %s", settings.criterion, settings.allocation, made.after["macs"])
    return made


def settled(settings: PlanSettings, *, data: bool) -> PlanSettings:
    """Return settings with defaults filled in.

    Args:
        settings: how to plan. `ratio_for`, `remove_blocks` or a size for `resolution` are a sufficient budget; nothing
            else is then removed.
        data: whether there are inputs.

    Raises:
        UsageError: there is no budget (OP602).
    """
    channels = settings.ratio is not None or bool(settings.targets) or bool(settings.constraints.ratio_for)
    if not channels and not settings.remove_blocks and settings.size is None:
        hint = "set `target` or `ratio`, for example a `target` of half the MACs: macs=50%"
        raise UsageError("OP602", "no budget says how much to remove", hint=hint)
    allocation = settings.allocation or ("reconstruction" if data and channels else "uniform")
    criterion = settings.criterion or ("obs" if allocation == "reconstruction" else "l2")
    ratio = 0.0 if settings.ratio is None and not settings.targets else settings.ratio
    return replace(settings, allocation=allocation, criterion=criterion, ratio=ratio)


def _spend_blocks(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches | None,
    curves: Callable[[], Sequence[Curve]],
    progress: Progress,
) -> PrunedGraph:
    """Remove the residual blocks without which the error is least once channels make up the rest of the target."""
    if not settings.counted or settings.timed or settings.allocation != "reconstruction":
        cause = "choosing the number of blocks needs a `target` other than latency, and the allocation reconstruction"
        hint = "set `data` and `target`, or give the number of blocks"
        raise PlanError("OP302", cause, where="remove_blocks", hint=hint)
    graph, whole, counted = analysis.graph, analysis.cost.totals(), settings.counted
    nothing = np.zeros(graph.unit_count, dtype=bool)
    if not settings.constraints.ratio_for and Limits(graph, counted, whole).hold(nothing):
        return PrunedGraph(graph)
    options: Any = {"seed": settings.seed, "progress": progress}
    return spend_blocks(graph, counted, settings.constraints, _needed(batches), curves(), whole, **options)


def sensitivities(
    analysis: TracedModel,
    settings: PlanSettings,
    batches: Batches | None,
    *,
    records: Records | None = None,
    progress: Progress = silent,
) -> list[Curve]:
    """Measure how the error of the outputs grows with the share removed from each group; those in records are known.

    Raises:
        PlanError: inputs are needed (OP312), or the criterion fails.
        ModelError: the model can't be run on the inputs.
        UsageError: there are no inputs, or no output varies with them (OP604).
    """
    graph, (fitted, held_back) = analysis.graph, share_out(_needed(batches))
    judge, criterion = OutputError(graph.proto, few(held_back), graph.front), settings.criterion or "obs"
    records = records or Records()
    fixed, free = eligible(graph, settings.constraints)
    names = {group.index: _part(graph, group.index) for group in (*(group for group, _ in fixed), *free)}
    curves = {i: curve_of(records[name]) for i, name in names.items() if name in records}
    progress("measure sensitivity", len(curves), len(names))
    for curve in measure(
        *(graph, fitted, judge),
        criterion=criterion,
        constraints=settings.constraints,
        seed=settings.seed,
        known=curves,
    ):
        curves[curve.group] = curve
        records.keep(names[curve.group], entry_of(curve, graph))
        progress("measure sensitivity", len(curves), len(names))
    return [curves[i] for i in sorted(curves)]


def _part(graph: ChannelGraph, group: int) -> str:
    return f"curves of {len(graph.proto.graph.node)} nodes/{group}"


def curves_in(records: Records, graph: ChannelGraph) -> tuple[Curve, ...]:
    """Return the sensitivities of a graph's groups that a run has measured."""
    names = (_part(graph, group.index) for group in graph.groups)
    return tuple(curve_of(records[name]) for name in names if name in records)


def read_curves(given: Sensitivities | None, analysis: TracedModel) -> Sequence[Curve] | None:
    """Return sensitivities measured before, read from a file if need be.

    Raises:
        PlanError: the file can't be read (OP313), or is for another model (OP306).
    """
    if isinstance(given, str | os.PathLike):
        return list(read_record(Path(given), analysis.model.sha256, analysis.graph).curves.values())
    return given


def _needed(batches: Batches | None) -> Batches:
    if batches is None:
        hint = "give some with `data`, labels are optional; or use the allocation uniform or global"
        raise PlanError("OP312", "the allocation by reconstruction error needs inputs", hint=hint)
    return batches


def latency_options(settings: LatencySettings, seed: int) -> Options:
    """Return the options for measuring latency; measurements are kept in the user's cache.

    Raises:
        UsageError: there is no such provider (OP608).
    """
    cache = cache_folder(os.environ) if settings.cache else None
    return Options(parse_provider(settings.provider or "cpu"), settings.threads, cache, seed)


def read_plan(path: str | os.PathLike[str]) -> PrunePlan:
    """Read a plan from a file.

    Raises:
        PlanError: the file can't be read or isn't a plan (OP305).
    """
    try:
        return PrunePlan.from_json(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise PlanError("OP305", f"can't read the file: {error.strerror}", where=str(path)) from error


def recorded(records: Records, name: str, make: Callable[[], PrunePlan]) -> PrunePlan:
    """Return a plan from the records, or make it and record it: one for a latency isn't made twice alike.

    Raises:
        PlanError: the plan can't be made.
    """
    if name in records:
        return PrunePlan.from_json(records[name].encode(), str(records.path))
    made = make()
    records.keep(name, made.to_json())
    return made
