"""Choose along which axes a model is made smaller: points that meet the targets are made, repaired and judged.

A point is a set of changes of the whole network (`Moves`); channels are removed for what these leave of a target. Each
axis says which points are worth trying, given the best so far; how they are tried is the same for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np

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
from onnxprune.settings.planning import Axis
from onnxprune.workflow import ranks, resolution, tokens
from onnxprune.workflow.analysis import TracedModel, moved

log = logging.getLogger(__name__)

Planner = Callable[[TracedModel, Sequence[Curve] | None], PrunePlan]

_FAILED = float("inf")
_ROUNDS = 3  # of planning, as layers that aren't worth being two become one again


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was tried.

    Attributes:
        moves: what is changed of the whole network.
        plan: this, and the channels that are removed then.
        errors: how far the outputs on inputs held back are from the original's, see `judge_of`: of each prediction, or
            of each batch.
    """

    moves: Moves
    plan: PrunePlan
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The mean of the errors."""
        return float(np.mean(self.errors))

    @property
    def fitted(self) -> bool:
        """Whether weights were fitted to inputs: those held back may be more like them than what the model will see."""
        return bool(self.plan.removed or self.plan.blocks or self.moves.tokens or self.moves.ranks)

    def as_good_as(self, other: Trial) -> bool:
        """Return whether the error exceeds another's by at most one standard error of the difference.

        (L. Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3.)
        """
        if len(self.errors) != len(other.errors):  # one of them isn't finite
            return self.error <= other.error
        difference = np.subtract(self.errors, other.errors)
        return bool(difference.mean() <= difference.std() / np.sqrt(len(difference)))

    def __str__(self) -> str:
        """Return the moves and the error."""
        words = in_words(self.moves)
        words += ["channels"] if self.plan.removed or not words else []
        return f"{' with '.join(words)} {self.error:.3g}"


def in_words(moves: Moves) -> list[str]:
    """Return what is changed, a word or two for each axis."""
    words = [text(size) for size in dict.fromkeys(moves.resolution.values())]
    words += [f"tokens {text(block)}" for block in moves.tokens.values()]
    return [*words, f"ranks of {len(moves.ranks)} layers"] if moves.ranks else words


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
        self.records, self.progress, self._planner = records, progress, planner
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
        """Return the error of a point; infinite if it is out of reach, or its changes save nothing.

        Raises:
            PlanError: channels alone can't be planned for another reason than that they can't meet the targets.
        """
        best = "" if self.best is None else f": best so far {self.best}"
        self.progress(f"try axes{best}", len(self.done), max(self.expected, len(self.done) + 1))
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
        if name not in self.records:
            try:
                error = self._judge(moved(self.analysis, moves).graph.proto)
            except (ModelError, PlanError):
                error = _FAILED
            self.records.keep(name, error)
            return error
        return float(self.records[name])

    def chosen(self) -> PrunePlan:
        """Return the plan of the best trial, with all that were tried among its settings.

        One in which nothing is fitted to inputs is preferred to another that isn't surely better.

        Raises:
            PlanError: no point is within reach.
        """
        best = self.best
        if best is None:
            raise self._problems[0]
        simple = min((t for t in self.done if not t.fitted), key=lambda trial: trial.error, default=best)
        if simple.as_good_as(best):
            best = simple
        log.info("%s on inputs held back: %s", self._judge.measures, ", ".join(map(str, self.done)))
        why = "" if best is self.best else ": no weight is fitted for it, and it isn't surely worse than the best"
        log.info("taken: %s%s", best, why)
        tried = [{**replace(trial.moves, bases={}).fields(), "error": trial.error} for trial in self.done]
        return replace(best.plan, settings={**best.plan.settings, "tried": tried})

    def _recorded(self, moves: Moves) -> Trial:
        """Return a trial from the records, or make it and record it."""
        name = f"{_record(moves)}/tried"
        if name in self.records:
            made, errors = self.records[name]
            plan = PrunePlan.from_json(made.encode(), str(self.records.path))
            return Trial(plan.moves, plan, tuple(errors))
        trial = self._made(moves, name)
        self.records.drop(f"{name}/repair")
        self.records.keep(name, [trial.plan.to_json(), list(trial.errors)])
        return trial

    def _made(self, moves: Moves, name: str) -> Trial:
        for _ in range(_ROUNDS):
            at = moved(self.analysis, moves)
            same = moves == self.analysis.moves or "channels" not in self.settings.allowed
            curves = None if same else carried(self._curves(), self.analysis.graph, at.graph)
            made = self._planner(at, curves)
            kept = apply_plan(at.graph, made)
            cheaper = at.cheaper(kept)
            if cheaper == moves:
                break
            if not cheaper.ranks:
                raise PlanError("OP301", "no layer is cheaper as two once channels left")
            moves = cheaper
        proto = rewrite(kept)
        if made.removed or moves.tokens or moves.ranks:
            known: dict[str, Any] = {"teacher": at.teacher, "records": self.records, "name": name}
            recover(kept, proto, self._fitted, seed=self.settings.seed, **known)
        return Trial(at.moves, made, tuple(self._judge.parts(proto).tolist()))


def axes_to_try(analysis: TracedModel, settings: PlanSettings, batches: Batches | None, data: Any) -> list[Axis]:
    """Return the axes beside channels along which points can be chosen by measurement.

    Args:
        analysis: the traced model.
        settings: how to plan, settled.
        batches: returns inputs.
        data: the samples as they were given.

    Raises:
        PlanError: one is asked for, and nothing can be chosen along it.
    """
    found = list[Axis]()
    for axis, why_not, asked, done in (
        ("resolution", resolution.why_not, settings.resolution == "auto", analysis.moves.resolution),
        ("tokens", tokens.why_not, "tokens" in settings.axes, analysis.moves.tokens),
        ("rank", ranks.why_not, "rank" in settings.axes, analysis.moves.ranks),
    ):
        if axis not in settings.allowed or done:
            continue
        if (problem := why_not(analysis, settings, batches, data)) is None:
            found.append(axis)
        elif asked:
            raise problem
        else:
            log.debug("nothing is tried along the axis %s: %s", axis, problem.cause)
    return found


def choose_point(points: Points, axes: Sequence[Axis]) -> PrunePlan | None:
    """Return the plan whose repaired network changes the outputs least.

    The change is the divergence of predictions for classifiers, and the relative squared error of outputs for others.
    None if nothing is to be tried: no other size of images is possible, and no lower rank. The model may turn out to
    meet a latency only when that is measured, before anything else is.

    Channels alone are tried first, then other sizes of images (`try_sizes`), then fewer tokens (`try_tokens`), then
    ranks (`try_ranks`). An interrupt ends this with the best so far, unless the trials are in a file from which another
    run can go on.

    Args:
        points: the points so far.
        axes: the axes beside channels, see `axes_to_try`.

    Raises:
        PlanError: nothing meets the targets (OP301), or no size or rank is possible though one is asked for (OP319,
            OP310).
    """
    settings, whole = points.settings, points.analysis.moves
    ladder: resolution.Ladder | None = None
    if "resolution" in axes:
        try:
            ladder = resolution.ladder_of(points.analysis, settings)
        except PlanError as error:
            if settings.resolution == "auto":
                raise
            log.debug("no resolution is tried: %s", error.cause)
    if ladder is None and not {"rank", "tokens"} & set(axes):
        return None
    points.expected = 1 + (0 if ladder is None else len(ladder.joint) + bool(ladder.fits)) + 3 * (len(axes) - 1)
    points.attempt(whole)
    if points.done and not (points.done[0].plan.removed or points.done[0].plan.blocks):
        return points.done[0].plan
    try:
        if ladder is not None:
            try_sizes(points, ladder)
        if "tokens" in axes:
            try_tokens(points, ladder)
        if "rank" in axes:
            try_ranks(points, ladder)
    except KeyboardInterrupt:
        if points.best is None or points.records.path is not None:
            raise
        log.warning("stopped: no other points are tried, and the best so far is taken; Ctrl-C again ends the command")
    return points.chosen()


def try_tokens(points: Points, ladder: resolution.Ladder | None) -> None:
    """Try fewer tokens: for each size of blocks, from late, then from earlier places on, as long as this gets better.

    Channels save the rest of the targets. The latest place that meets them alone is tried in any case.

    Raises:
        PlanError: no tokens can merge (OP320).
    """
    moves, start = _start(points, ladder), points.error
    for places in tokens.places_of(moved(points.analysis, moves), points.settings):
        last = start
        for blocks in places.joint:
            error = points.attempt(replace(moves, tokens=blocks))
            if error > last:
                break
            last = error
        if places.fits:
            points.attempt(replace(moves, tokens=places.fits))


def _start(points: Points, ladder: resolution.Ladder | None) -> Moves:
    """Return the best moves so far; if their images meet the targets alone, with the next larger ones."""
    moves = points.analysis.moves if points.best is None else points.best.moves
    if ladder is not None and moves.resolution == ladder.fits:
        return replace(moves, resolution=ladder.joint[0] if ladder.joint else {})
    return moves


def try_ranks(points: Points, ladder: resolution.Ladder | None) -> None:
    """Try lower ranks, for more and more of what is to be saved, as long as this gets better.

    Images have the size that was best so far; if that meets the targets by itself, the next larger one.

    Raises:
        PlanError: no layer can be two (OP310).
    """
    moves = _start(points, ladder)
    choice, last = ranks.RankChoice(moved(points.analysis, moves), points.settings), _FAILED
    curves = choice.curves(points.batches, points.records, f"{_record(moves)}/ranks", points.progress)
    for found in choice.candidates(curves):
        error = points.attempt(replace(moves, ranks=found))
        if error > last:
            break
        last = error


def try_sizes(points: Points, ladder: resolution.Ladder) -> None:
    """Try smaller images: the largest that meets the targets alone, and larger ones together with channels.

    Of these, the smallest comes first, as long as they get better. What resizing alone does to the outputs is measured
    first: a size that is worse by itself than the best so far is skipped.
    """
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
    words = [f"{name}={text(size)}" for name, size in moves.resolution.items()]
    words += [f"tokens={text(block)} behind {name}" for name, block in moves.tokens.items()]
    if moves.ranks:
        words.append(f"ranks={sha256(repr(sorted(moves.ranks.items())).encode()).hexdigest()[:16]}")
    return f"point/{','.join(words)}"
