"""Compare ways to look for trade-offs at equal numbers of trials: ``python -m benchmarks.sweep``.

Every run is kept in a file (`--state`), so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import click
import numpy as np

from benchmarks.common import ROOT, Column, Kept, Report, Table, chosen, log, options, with_state
from benchmarks.recovery_cases import SHARED
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.budget import candidate_steps
from onnxprune.planning.plan import PrunePlan, plan_of
from onnxprune.progress import silent
from onnxprune.sensitivity import drop
from onnxprune.settings import ShrinkSettings, build
from onnxprune.settings.planning import Constraints
from onnxprune.sweeping.candidate import Bench, bench
from onnxprune.sweeping.space import CHANNELS, FORM, NONE, Choice, Space, first_points
from onnxprune.sweeping.store import optuna
from onnxprune.sweeping.worker import distributions, tpe
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.prune_model import prune_model

WORST = 0.2  # drop of the point that hypervolumes are measured from; the other coordinate is the file's cost
_STEP = 0.12  # of the cost that a step of NetAdapt saves

NOTES = (
    "Each way gets the same number of trials: a trial makes a model, repairs it and measures its drop. Figures are "
    "hypervolumes: the share of the area between no drop and one of 20 points, and between no cost and the file's, "
    "that the models found dominate. They were found by the samples that choose, and their drops here are those on "
    "samples that judge, so that luck in choosing doesn't count. Higher is better.",
    "*planner* tries shares of the cost evenly spaced, with the planner's own allocation. *random*, *TPE* and "
    "*NSGA-II* search the space of `onnxprune sweep` (shares, resolutions where images are large enough; for the "
    "file's size also forms in fewer bits, which the planner tries evenly, too). TPE and NSGA-II begin with the points "
    "that a sweep begins with, *TPE, cold* doesn't. *NetAdapt* (Yang et al. 2018) "
    "shrinks one group at a time, the one that costs least accuracy; each candidate is a trial. *CMA-ES* searches the "
    "share of every group, for a drop that is weighed against the cost.",
    "Of digits, a single sample of those that judge is 0.019 of a hypervolume, so that the first ways can't be told "
    "apart there, and the other networks have one run of each way. With one axis that matters and few trials, the "
    "planner's own points are as good as any search (digits, ResNet-56). Where smaller images are best (MobileNetV2), "
    "a search that begins with them finds most. Eight trials of ResNet-20's latency tell little. `onnxprune sweep` "
    "takes TPE with these first points. Searches of single layers are behind, and it doesn't offer them.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network, its data, and what its drop is traded for."""

    name: str
    model: Path
    data: Path
    recipe: str = ""
    cost: str = "macs"
    trials: int = 16
    effort: str = "quick"


_CIFAR = SHARED / "data/cifar10_calib4660.npz"
_IMAGES = SHARED / "data/imagenet500_224.zip"
_DIGITS = ROOT / "models/digits_resnet.onnx"
CASES = (
    Case("digits", _DIGITS, ROOT / "models/digits_train.npz"),
    Case("digits size", _DIGITS, ROOT / "models/digits_train.npz", cost="size"),
    Case("resnet56", SHARED / "models/cifar_resnet56_dynamo.onnx", _CIFAR),
    Case(
        *("mobilenetv2", SHARED / "models/mobilenetv2_10_224_tf2_f32.onnx", _IMAGES),
        *("scale=1/127.5 mean=1 label_offset=1", "macs", 6),
    ),
    Case("resnet20 latency", SHARED / "models/cifar_resnet20_ts.onnx", _CIFAR, cost="latency", trials=8),
)


@dataclass(slots=True)
class Run:
    """What a way has found.

    Attributes:
        case: the case.
        way: the way.
        seed: its random seed.
        points: for each trial that gave a model: its cost relative to the file's, the drop on samples that choose, and
            that on samples that judge.
        seconds: the time that it took.
    """

    case: str
    way: str
    seed: int
    points: list[tuple[float, float, float]] = field(default_factory=list)
    seconds: float = 0.0


class Ground:
    """Where the ways of a case are compared: they make models by points of the space, or by plans."""

    def __init__(self, case: Case, own: Bench, space: Space) -> None:
        self.case, self.own, self.space, self.done = case, own, space, list[tuple[float, float, float]]()
        graph = self.graph = own.pipeline.analysis.graph
        self.curves = {curve.group: curve for curve in own.curves}
        scores = [np.zeros(len(group.units)) for group in graph.groups]
        for i, curve in self.curves.items():
            scores[i][list(curve.order)] = np.arange(len(curve.order))
        _, self.steps = candidate_steps(graph, scores, Constraints())
        self.known: dict[str, tuple[float, float] | None] = {}

    @property
    def full(self) -> bool:
        """Whether no trial is left."""
        return self.used >= self.case.trials

    used = 0

    def point(self, choice: Choice) -> tuple[float, float] | None:
        """Make the model of a point; return its cost and its drop, None if there is none."""
        try:
            made = self.own.make(choice)
        except OnnxPruneError as error:
            log.print(f"{dict(choice)}: {error.cause}", style="dim")
            self.used += 1
            return None
        name = "size" if self.case.cost == "size" else "macs"
        return self._measured(made.model, made.costs[name] / self.own.costs[name])

    def plan(self, plan: PrunePlan) -> tuple[float, float] | None:
        """Make the model of a plan; return its cost and its drop."""
        if plan.digest in self.known:
            self.used += 1
            return self.known[plan.digest]
        parts, settings = self.own.pipeline.parts, self.own.pipeline.settings
        assert parts is not None
        limit = self.own.pipeline.own.of(_stage("prune"), None, []).calibration.limit
        made = prune_model(self.own.original, plan=plan, data=parts.training, limit=limit, threads=settings.threads)
        self.known[plan.digest] = self._measured(made.model, plan.after["macs"] / plan.before["macs"])
        return self.known[plan.digest]

    def _measured(self, model: Any, cost: float) -> tuple[float, float]:
        self.used += 1
        measure = self.own.pipeline.judge.measure
        assert measure is not None
        if self.case.cost == "latency":
            speed, untimed = self.own.speed(model, "cpu")
            assert speed is not None, untimed
            cost = 1 / speed.speedup.value
        own, judged = measure(model.proto, silent, whole=True), measure.judge(model.proto, silent)
        drops = drop(own, measure.metric).value, drop(judged, measure.metric).value
        self.done.append((cost, *drops))
        return cost, drops[0]

    def without(self, counts: Mapping[int, int]) -> PrunePlan:
        """Return the plan that takes a number of steps of each group."""
        removed = np.zeros(self.graph.unit_count, dtype=bool)
        for group, count in counts.items():
            for step in self.steps[group][:count]:
                removed[step.units] = True
        found = plan_of(PrunedGraph(self.graph, removed), self.own.original.sha256, {})
        return found


def _stage(name: str) -> Any:
    from onnxprune.workflow.stages import STAGES

    return next(stage for stage in STAGES if stage.name == name)


def planner(ground: Ground, seed: int) -> None:
    axis = next(axis for axis in ground.space if axis.name == CHANNELS)
    forms: Sequence[Any] = next((axis.choices for axis in ground.space if axis.name == FORM), (NONE,))
    for form in forms:
        for share in np.linspace(98, axis.low, ground.case.trials // len(forms)):
            ground.point({CHANNELS: int(share), FORM: form})


def proposed(sampler: Callable[[int], Any], *, warm: bool) -> Callable[[Ground, int], None]:
    """Return a way that takes its points from a sampler of Optuna."""

    def way(ground: Ground, seed: int) -> None:
        study = optuna().create_study(directions=["minimize", "minimize"], sampler=sampler(seed))
        first = first_points(ground.space, ground.own.pipeline.analysis, ground.own.curves) if warm else []
        for point in first:
            study.enqueue_trial(dict(point))
        while not ground.full:
            trial = study.ask(fixed_distributions=distributions(ground.space))
            found = ground.point(trial.params)
            study.tell(trial, found, state=None if found else optuna().trial.TrialState.PRUNED)

    return way


def netadapt(ground: Ground, seed: int) -> None:
    """Shrink the group that costs least accuracy, again and again, until the trials are used up."""
    counts, cost = dict.fromkeys(ground.steps, 0), 1.0
    while not ground.full:
        tried = []
        for group in ground.steps:
            own = dict(counts)
            while own[group] < len(ground.steps[group]):
                own[group] += 1
                plan = ground.without(own)
                if plan.after["macs"] / plan.before["macs"] <= cost - _STEP * cost:
                    break
            if own[group] == counts[group]:
                continue
            if ground.full:
                return
            found = ground.plan(ground.without(own))
            if found is not None:
                tried.append((found[1] / max(cost - found[0], 1e-6), found[0], own))
        if not tried:
            return
        _, cost, counts = min(tried, key=lambda each: each[0])


def cma(ground: Ground, seed: int) -> None:
    """Search the share of every group by CMA-ES; a drop of the worst allowed weighs as much as the whole cost."""
    groups = sorted(ground.steps)
    study = optuna().create_study(sampler=optuna().samplers.CmaEsSampler(seed=seed))
    axes = {f"g{group}": optuna().distributions.FloatDistribution(0.0, 1.0) for group in groups}
    while not ground.full:
        trial = study.ask(fixed_distributions=axes)
        counts = {group: round(trial.params[f"g{group}"] * len(ground.steps[group])) for group in groups}
        if not any(counts.values()):
            ground.used += 1
            study.tell(trial, state=optuna().trial.TrialState.PRUNED)
            continue
        cost, loss = ground.plan(ground.without(counts)) or (1.0, 1.0)
        study.tell(trial, loss / WORST + cost)


def _nsga(seed: int) -> Any:
    return optuna().samplers.NSGAIISampler(population_size=8, seed=seed)


WAYS: Mapping[str, Callable[[Ground, int], None]] = {
    "planner": planner,
    "random": proposed(lambda seed: optuna().samplers.RandomSampler(seed=seed), warm=False),
    "TPE": proposed(tpe, warm=True),
    "TPE, cold": proposed(tpe, warm=False),
    "NSGA-II": proposed(_nsga, warm=True),
    "NetAdapt": netadapt,
    "CMA-ES": cma,
}
FIXED = ("planner", "NetAdapt")
"""Ways without chance."""

WIDTHS = ("NetAdapt", "CMA-ES")
"""Ways that choose widths only, so that they aren't tried where forms in fewer bits count."""


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Return the share of the area up to the file's cost and the worst drop that points dominate.

    Examples:
        >>> round(hypervolume([(0.5, 0.0), (0.25, 0.1)]), 6)
        0.625
        >>> hypervolume([(1.5, 0.0), (0.5, 0.3)])
        0.0
    """
    total, best = 0.0, WORST
    for cost, loss in sorted((c, max(d, 0.0)) for c, d in points if c < 1 and d < WORST):
        if loss < best:
            total += (best - loss) * (1 - cost)
            best = loss
    return total / WORST


def front(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Return the costs and the drops on judging samples of the points that none beats on choosing ones."""
    best = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q[:2] != p[:2] for q in points)]
    return [(cost, judged) for cost, _, judged in best]


def runs_of(case: Case, seeds: int) -> list[tuple[str, int]]:
    """Return the ways that a case is measured by, with the random seeds of each."""
    ways = [way for way in WAYS if case.cost != "size" or way not in WIDTHS]
    return [(way, seed) for way in ways for seed in range(1 if way in FIXED else seeds)]


def measured(case: Case, left: Sequence[tuple[str, int]], end: float) -> Iterator[Run]:
    """Yield runs of a case."""
    if not left or perf_counter() > end:
        return
    given = {"data": str(case.data), "effort": case.effort, "threads": 1}
    given |= {"preprocess": case.recipe} if case.recipe else {}
    with bench(case.model, build(ShrinkSettings, given)) as own:
        space = tuple(axis for axis in own.explore(silent, forms=case.cost == "size"))
        log.print(f"{case.name}: {space}", style="dim")
        for way, seed in left:
            if perf_counter() > end:
                return
            ground, began = Ground(case, own, space), perf_counter()
            WAYS[way](ground, seed)
            run = Run(case.name, way, seed, ground.done, perf_counter() - began)
            log.print(
                f"{case.name}/{way}/{seed}: {hypervolume(front(run.points)):.3f}, {run.seconds:.0f} s", style="dim"
            )
            yield run


def tables(runs: Sequence[Run]) -> list[Table]:
    """Return a table for each case."""

    def of(way: Sequence[Run]) -> tuple[str, list[float], Sequence[Run]]:
        return way[0].way, [hypervolume(front(run.points)) for run in way], way

    columns: list[Column[tuple[str, list[float], Sequence[Run]]]] = [
        Column("way", lambda w: w[0], True),
        Column("hypervolume", lambda w: f"{mean(w[1]):.3f}"),
        Column("least to most", lambda w: f"{min(w[1]):.3f} to {max(w[1]):.3f}" if len(w[1]) > 1 else ""),
        Column("runs", lambda w: str(len(w[1]))),
        Column("models", lambda w: f"{mean(len(r.points) for r in w[2]):.0f}"),
        Column("took", lambda w: f"{mean(r.seconds for r in w[2]):.0f} s"),
    ]
    found = []
    for case in dict.fromkeys(run.case for run in runs):
        ways = [[r for r in runs if r.case == case and r.way == way] for way in WAYS]
        found.append(Table.of(case, columns, [of(way) for way in ways if way]))
    return found


@click.command()
@options
@with_state
@click.option("--minutes", type=float, default=float("inf"), help="Time after which no other run begins.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Runs of each way that has chance in it.")
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None, minutes: float, seeds: int) -> None:
    """Compare ways to look for trade-offs."""
    end, kept = perf_counter() + 60 * minutes, Kept(Run, state)
    present = [case for case in CASES if case.model.is_file() and case.data.exists()]
    wanted = chosen([f"{case.name}/{way}/{seed}" for case in present for way, seed in runs_of(case, seeds)], only)
    for case in present:
        names = {f"{case.name}/{way}/{seed}": (way, seed) for way, seed in runs_of(case, seeds)}
        left = [names[name] for name in names if name in wanted and name not in kept.results]
        for run in measured(case, left, end):
            kept.keep(f"{run.case}/{run.way}/{run.seed}", run)
    found = list(kept.results.values())
    settings = {"clock": "wall", "threads": 1, "worst": WORST, "trials": {c.name: c.trials for c in CASES}}
    report = Report("sweep", "Ways to look for trade-offs", NOTES, tables(found), settings, {"runs": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
