"""Choose along which axes a model is made smaller: points that meet the targets are made, repaired and judged.

A point is a set of changes of the whole network (`Moves`); channels are removed for what these leave of a target. Each
axis says which points are worth trying, given the best so far; how they are tried is the same for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from onnxprune.errors import ModelError, OnnxPruneError, PlanError
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches
from onnxprune.planning.plan import Moves, PrunePlan, apply_plan
from onnxprune.progress import Progress
from onnxprune.recover import recover
from onnxprune.resolution.resize import text
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, carried, judge_of, share_out
from onnxprune.settings import PlanSettings
from onnxprune.workflow.analysis import TracedModel, moved
from onnxprune.workflow.resolution import Ladder, ladder_of

log = logging.getLogger(__name__)

Planner = Callable[[TracedModel, Sequence[Curve] | None], PrunePlan]

_FAILED = float("inf")


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was tried.

    Attributes:
        moves: what is changed of the whole network.
        plan: this, and the channels that are removed then.
        error: how far the outputs on inputs held back are from the original's, see `judge_of`.
    """

    moves: Moves
    plan: PrunePlan
    error: float

    def __str__(self) -> str:
        """Return the moves and the error."""
        words = in_words(self.moves)
        words += ["channels"] if self.plan.removed or not words else []
        return f"{' with '.join(words)} {self.error:.3g}"


def in_words(moves: Moves) -> list[str]:
    """Return what is changed, a word or two for each axis."""
    return [text(size) for size in dict.fromkeys(moves.resolution.values())]


class Points:
    """The points that are tried for a model's targets.

    Attributes:
        done: the trials, in order.
    """

    def __init__(
        self,
        analysis: TracedModel,
        settings: PlanSettings,
        batches: Batches,
        data: Any,
        measure: Callable[[Batches], Sequence[Curve]],
        planner: Planner,
        records: Records,
        progress: Progress,
    ) -> None:
        """Run the original on the inputs that are held back.

        Args:
            analysis: the traced model.
            settings: how to plan.
            batches: returns inputs. Every fourth batch is held back to judge by; the others serve to repair.
            data: the samples as they were given; they may say what outputs mean.
            measure: returns the sensitivities of channels, for inputs.
            planner: plans channels for a changed model, with sensitivities if there are any that fit; it measures them
                itself otherwise, if they are needed.
            records: the trials that are done already; filled as others are.
            progress: called for each trial.
        """
        self.done, self.expected = list[Trial](), 1
        self.analysis, self.settings, self.batches = analysis, settings, batches
        self._planner, self._records, self._progress = planner, records, progress
        self._fitted, held_back = share_out(batches)
        self._judge = judge_of(analysis.original, held_back, analysis.graph.front, data)
        self._curves = cache(lambda: measure(batches))
        self._problems = list[OnnxPruneError]()

    @property
    def best(self) -> Trial | None:
        """The trial with the smallest error; None so far."""
        return min(self.done, key=lambda trial: trial.error, default=None)

    @property
    def error(self) -> float:
        """The error of the best trial; infinite without any."""
        return _FAILED if self.best is None else self.best.error

    def attempt(self, moves: Moves) -> float:
        """Return the error of a point; infinite if it is out of reach.

        Raises:
            PlanError: channels alone can't be planned for another reason than that they can't meet the targets.
        """
        self._progress("try axes", len(self.done), max(self.expected, len(self.done) + 1))
        try:
            self.done.append(self._recorded(moves))
        except (ModelError, PlanError) as error:
            if moves == self.analysis.moves and error.code not in ("OP301", "OP310"):
                raise
            self._problems.append(error)
            return _FAILED
        return self.done[-1].error

    def alone(self, moves: Moves) -> float:
        """Return the error of a changed network with all its channels; infinite if the change isn't possible."""
        name = f"{_record(moves)}/alone"
        if name not in self._records:
            try:
                error = self._judge(moved(self.analysis, moves).graph.proto)
            except (ModelError, PlanError):
                error = _FAILED
            self._records.keep(name, error)
            return error
        return float(self._records[name])

    def chosen(self) -> PrunePlan:
        """Return the plan of the best trial, with all that were tried among its settings.

        Raises:
            PlanError: no point is within reach.
        """
        best = self.best
        if best is None:
            raise self._problems[0]
        log.info("%s on inputs held back: %s", self._judge.measures, ", ".join(map(str, self.done)))
        log.info("taken: %s", best)
        tried = [{**trial.moves.fields(), "error": trial.error} for trial in self.done]
        return replace(best.plan, settings={**best.plan.settings, "tried": tried})

    def _recorded(self, moves: Moves) -> Trial:
        """Return a trial from the records, or make it and record it."""
        name = f"{_record(moves)}/trial"
        if name in self._records:
            made, error = self._records[name]
            plan = PrunePlan.from_json(made.encode(), str(self._records.path))
            return Trial(plan.moves, plan, error)
        trial = self._made(moves, name)
        self._records.drop(f"{name}/repair")
        self._records.keep(name, [trial.plan.to_json(), trial.error])
        return trial

    def _made(self, moves: Moves, name: str) -> Trial:
        at = moved(self.analysis, moves)
        curves = None if moves == self.analysis.moves else carried(self._curves(), self.analysis.graph, at.graph)
        made = self._planner(at, curves)
        kept = apply_plan(at.graph, made)
        proto = rewrite(kept)
        if made.removed:
            recover(kept, proto, self._fitted, seed=self.settings.seed, records=self._records, name=name)
        return Trial(moves, made, self._judge(proto))


def choose_point(points: Points) -> PrunePlan | None:
    """Return the plan whose repaired network changes the outputs least.

    The change is the divergence of predictions for classifiers, and the relative squared error of outputs for others.
    None if nothing is to be tried: no other size of images is possible. The model may turn out to meet a latency only
    when that is measured, before anything else is.

    Tried are channels alone; the largest image that meets the targets alone; and larger ones together with channels,
    the smallest first, as long as they get better. What resizing alone does to the outputs is measured first: a size
    that is worse by itself than the best so far is skipped.

    Raises:
        PlanError: nothing meets the targets (OP301), or no size is possible though one is asked for (OP319).
    """
    settings, whole = points.settings, points.analysis.moves
    try:
        ladder = ladder_of(points.analysis, settings)
    except PlanError as error:
        if settings.resolution == "auto":
            raise
        log.debug("no resolution is tried: %s", error.cause)
        return None
    points.expected = len(ladder.joint) + 1 + bool(ladder.fits)
    points.attempt(whole)
    if points.done and not (points.done[0].plan.removed or points.done[0].plan.blocks):
        return points.done[0].plan
    try_sizes(points, ladder)
    return points.chosen()


def try_sizes(points: Points, ladder: Ladder) -> None:
    """Try smaller images, with and without channels."""
    whole, last = points.analysis.moves, _FAILED
    if ladder.fits:
        points.attempt(replace(whole, resolution=ladder.fits))
    for sizes in ladder.joint:
        moves = replace(whole, resolution=sizes)
        if points.alone(moves) >= points.error:
            continue
        found = points.attempt(moves)
        if found > last:
            break
        last = found


def _record(moves: Moves) -> str:
    """Return the name under which trials of a point are recorded."""
    return "point/" + ",".join(f"{name}={text(size)}" for name, size in moves.resolution.items())
