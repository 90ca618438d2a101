"""The places in a vision transformer where merging tokens is worth trying, and which of them meet the targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxprune.cost.cost import model_cost
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.model.stream import Batches
from onnxprune.settings import PlanSettings
from onnxprune.shapes import concretize
from onnxprune.tokens.merge import Merged, merge
from onnxprune.tokens.streams import Grid, Stream, find_streams
from onnxprune.workflow.analysis import TracedModel, moved
from onnxprune.workflow.measurable import why_not_measured
from onnxprune.workflow.resolution import meets

log = logging.getLogger(__name__)

Blocks = Mapping[str, Grid]

_BLOCKS: tuple[Grid, ...] = ((2, 2), (1, 2))
_DEPTHS = (1 / 6, 1 / 3, 1 / 2, 2 / 3)  # shares of the residual sums, where tokens merge together with channels
_LEAST = 0.2  # of the MACs that merging behind the first sum must save
_OTHERWISE = "let `axes` name others, such as channels"
_SMALLEST = 4  # rows and columns of patches, below which nothing merges


def why_not(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, data: Any) -> OnnxPruneError | None:
    """Return why tokens can't be chosen by measurement, if so, as an error."""
    quantities = {target.quantity for target in settings.targets}
    if not quantities or quantities & {"params", "size", "memory"}:
        cause = "merging tokens needs a limit on macs or latency: it saves no weights"
        return PlanError("OP302", cause, where="axes", hint="set a `target` on one of these, and no other")
    try:
        _streams(analysis)
    except PlanError as error:
        return error
    alone = settings.allowed == ("tokens",)
    return why_not_measured(
        "where tokens merge",
        settings,
        batches,
        data,
        where="axes",
        otherwise="let `axes` name tokens alone",
        alone=alone,
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where blocks of one size are worth trying.

    Attributes:
        fits: the last place that meets the targets alone; empty if none does.
        joint: later ones, the latest first.
    """

    fits: Blocks
    joint: tuple[Blocks, ...]


def places_of(analysis: TracedModel, settings: PlanSettings) -> list[Places]:
    """Return the places worth trying, for each size of blocks.

    Raises:
        PlanError: the model has no tokens of patches, or something needs all of them (OP320).
    """
    streams, found = _streams(analysis), list[Places]()
    for block in _BLOCKS:
        last = _last(analysis, streams, block, settings)
        joint = {round(depth * len(streams)) for depth in _DEPTHS} if "channels" in settings.allowed else set[int]()
        later = sorted((i for i in joint if i > last), reverse=True)
        fits = {} if last < 0 else {streams[last].tensor: block}
        found.append(Places(fits, tuple({streams[i].tensor: block} for i in later)))
    return found


def _last(analysis: TracedModel, streams: list[Stream], block: Grid, settings: PlanSettings) -> int:
    """Return the last place where merging meets the targets alone; -1 if it doesn't anywhere."""
    last, after = -1, len(streams)
    while after - last > 1:  # costs grow with the place
        middle = (last + after) // 2
        fits = meets(analysis, _merged(analysis, streams[middle], block).proto, settings)
        last, after = (middle, after) if fits else (last, middle)
    return last


def latest_within(analysis: TracedModel, settings: PlanSettings) -> TracedModel:
    """Return a traced model whose tokens merge as late as the targets allow, in the smallest blocks that meet them.

    Raises:
        PlanError: none do (OP301), or no tokens can merge (OP320).
    """
    if (problem := why_not(analysis, settings, None, None)) is not None:
        raise problem
    if meets(analysis, analysis.graph.proto, settings):
        return analysis
    for places in reversed(places_of(analysis, settings)):
        if places.fits:
            return moved(analysis, replace(analysis.moves, tokens=places.fits))
    raise PlanError("OP301", "merging tokens doesn't meet the target", hint="let `axes` name channels, too")


def _streams(analysis: TracedModel) -> list[Stream]:
    graph = analysis.graph
    found = [s for s in find_streams(graph.proto, graph.shapes) if min(s.grid) >= _SMALLEST]
    if not found:
        cause = f"no residual block has tokens of at least {_SMALLEST}x{_SMALLEST} patches of an image"
        raise PlanError("OP320", f"tokens can't be merged: {cause}", where="axes", hint=_OTHERWISE)
    first = _merged(analysis, found[0], _BLOCKS[0])
    if first.whole and not _saves(analysis, first):
        cause = f"merging tokens saves too little: {first.whole[0]}"
        raise PlanError("OP320", cause, where="axes", hint=_OTHERWISE)
    return found


def _merged(analysis: TracedModel, stream: Stream, block: Grid) -> Merged:
    return merge(analysis.graph.proto, analysis.graph.shapes, {stream.tensor: block})


def _saves(analysis: TracedModel, merged: Merged) -> bool:
    inputs = analysis.graph.shapes.inputs
    before, after = (model_cost(p, concretize(p, inputs)).macs for p in (merged.original, merged.proto))
    return after < (1 - _LEAST) * before
