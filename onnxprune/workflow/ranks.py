"""The ranks of layers that are worth trying for a model's targets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxprune.cost.cost import cost
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches
from onnxprune.planning.budget import nothing_to_prune
from onnxprune.progress import Progress
from onnxprune.rank.budget import allowed_ranks, by_weights, measure, spend
from onnxprune.rank.factors import find_split
from onnxprune.sensitivity import Curve, Point
from onnxprune.settings import PlanSettings
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.measurable import why_not_measured

log = logging.getLogger(__name__)

_SHARES = (0.3, 0.6, 1.0)  # of what is to be saved, by ranks; channels save the rest
_SAVED = {"macs": "macs", "params": "params", "size": "params", "latency": "macs"}


def why_not(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, data: Any) -> OnnxPruneError | None:
    """Return why no ranks can be chosen, if so, as an error."""
    quantities = {target.quantity for target in settings.targets}
    if not quantities & _SAVED.keys():
        cause = "choosing ranks needs a limit on macs, params, size or latency"
        return PlanError("OP302", cause, where="axes", hint="set a `target`, or `minimize` one of these")
    if settings.ratio or settings.remove_blocks or settings.constraints.ratio_for:
        return PlanError("OP302", "ranks are chosen for a `target`, and nothing else says how much to remove")
    alone = settings.allowed == ("rank",) and not settings.timed
    return why_not_measured(
        "ranks", settings, batches, data, where="axes", otherwise="let `axes` name rank alone", alone=alone
    )


class RankChoice:
    """The ranks of a model's layers for parts of its targets."""

    def __init__(self, analysis: TracedModel, settings: PlanSettings) -> None:
        """Find the layers.

        Args:
            analysis: the traced model.
            settings: how to plan.

        Raises:
            PlanError: no layer can be two (OP310).
        """
        graph = analysis.graph
        self.analysis, self.settings = analysis, settings
        self.layers, others = find_split(graph.proto, graph.shapes)
        self.layers = [split for split in self.layers if split.layer.y not in graph.unmade]
        self.ranks = allowed_ranks(graph, self.layers, settings.constraints)
        for left_out in others:
            log.debug("not two layers: %s: %s", left_out.node, left_out.reason)
        if not self.ranks:
            raise nothing_to_prune()

    def curves(self, batches: Batches | None, records: Records, name: str, progress: Progress) -> list[Curve]:
        """Return the sensitivities to the ranks of layers; without inputs, the errors of their weights."""
        if batches is None:
            return by_weights(self.analysis.graph.proto, self.layers, self.ranks)
        if name in records:
            return [
                Curve(number, tuple(range(self.layers[number].full)), tuple(Point(*point) for point in points))
                for number, points in records[name]
            ]
        known = self.analysis.graph, self.layers, self.ranks, batches
        found = measure(*known, seed=self.settings.seed, progress=progress)
        records.keep(name, [[curve.group, [[p.removed, p.error] for p in curve.points]] for curve in found])
        return found

    def for_share(self, curves: Sequence[Curve], share: float) -> Mapping[str, int]:
        """Return ranks that save a share of what is to be saved.

        Raises:
            PlanError: they can't (OP301).
        """
        whole, now = self.analysis.cost.totals(), cost(PrunedGraph(self.analysis.graph)).totals()
        limits: dict[str, tuple[float, float]] = {}
        for target in self.settings.targets:
            if target.quantity not in _SAVED:
                continue
            counted = "macs" if target.quantity == "latency" else target.quantity
            quantity, least = _SAVED[target.quantity], min(target.limit(whole[counted]) / max(now[counted], 1), 1.0)
            limit = now[quantity] * (1 - share * (1 - least))
            limits[quantity] = now[quantity], min(limit, limits.get(quantity, (0.0, limit))[1])
        return spend(self.layers, self.ranks, curves, limits)

    def candidates(self, curves: Sequence[Curve]) -> Iterator[Mapping[str, int]]:
        """Yield ranks to try, those that save least first."""
        for share in _SHARES if "channels" in self.settings.allowed else _SHARES[-1:]:
            try:
                ranks = self.for_share(curves, share)
            except PlanError as error:
                log.debug("ranks for %.0f%% of the saving: %s", 100 * share, error.cause)
                continue
            if ranks:
                yield ranks


def by_ranks_alone(
    analysis: TracedModel, settings: PlanSettings, batches: Batches | None, records: Records, progress: Progress
) -> Mapping[str, int]:
    """Return ranks that meet the targets by themselves, by measurement, or by the weights without inputs.

    Raises:
        PlanError: no layer can be two (OP310), or the targets can't be met (OP301).
    """
    choice = RankChoice(analysis, settings)
    return choice.for_share(choice.curves(batches, records, "curves of ranks", progress), 1.0)
