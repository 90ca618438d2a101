"""Accuracy after pruning and after repair without labels or gradients: criteria x recoveries x budgets.

Results are kept in the JSON file, so that an interrupted benchmark resumes. The tables show all results so far.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np

import onnxprune as op
from benchmarks.common import DOCS, log
from benchmarks.packages import packaged, packaged_model
from benchmarks.recovery_cases import (
    DISTILLED,
    GRADIENTS,
    NONE,
    PACKAGED,
    SEED,
    SUBJECTS,
    Calibration,
    Case,
    Subject,
    everything,
    selection,
)
from benchmarks.recovery_tables import Interval, Result, Times, report
from onnxprune.data import Dataset
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation import evaluate
from onnxprune.model.file import load
from onnxprune.model.resumable import Records
from onnxprune.model.stream import Batches, Inputs
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.sensitivity import Curve
from onnxprune.settings.planning import PlanSettings, Target
from onnxprune.settings.training import TrainSettings
from onnxprune.train.mimicry import mimicry
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.inputs import in_batches
from onnxprune.workflow.planning import sensitivities
from onnxprune.workflow.pruning import prune, repair
from onnxprune.workflow.training import Training, train

_BATCH, _EPOCHS = 32, 40


class Workshop:
    """A subject with everything that its cases share: the traced model, data, and measured sensitivities."""

    def __init__(self, subject: Subject, limit: int | None) -> None:
        model = packaged_model(subject.name) if subject in PACKAGED else subject.path
        assert model is not None
        self.analysis = analyze(in_batches(load(model))[0])
        self.calibration, judged = subject.data(self.analysis)
        self.judged = {name: _first(data, limit) for name, data in judged.items()}
        self._curves = cache(self._measure)

    def batches(self, calibration: Calibration) -> Batches:
        """Return batches of calibration inputs."""

        def again() -> Iterator[Inputs]:
            return (batch.inputs for batch in self.calibration[calibration].batches(_BATCH))

        return again

    def measure(self, case: Case) -> Result:
        """Plan, prune, repair and evaluate."""
        batches = self.batches(case.calibration)
        axes: Any = tuple(case.axes.split(","))
        choice: Any = {"criterion": case.criterion, "allocation": case.allocation, "axes": axes}
        choice["remove_blocks"] = "auto" if case.blocks else 0
        settings = PlanSettings(target=Target("macs", case.macs), seed=SEED, **choice)
        curves, before = None, (0.0, 0.0)
        if case.allocation == "reconstruction" and "channels" in axes and "basis" not in axes:
            curves, before = self._curves(settings.criterion, case.calibration)
        planning = _Clock()
        plan = op.plan(self.analysis, settings, data=batches, sensitivity=curves)
        planned_for = analyze(self.analysis, plan=plan)
        pruned = prune(planned_for, plan, check=False)
        planned = planning.stop()
        repairing = _Clock()
        training, proto = self._training(case), pruned.proto
        if training is not None:
            fitted, held_back = training.hold_back(self.calibration[case.calibration])
            repair(pruned, fitted, seed=SEED)
            tuned = train(pruned, fitted, held_back, planned_for, training, Records())
            proto = proto if tuned is None else tuned.proto
        elif case.recovery != NONE:
            kept = apply_plan(planned_for.graph, plan)
            method: Any = case.recovery
            recover(kept, pruned.proto, batches, method=method, seed=SEED, teacher=pruned.teacher)
        repaired = repairing.stop()
        top1: dict[str, Interval] = {}
        change: dict[str, Interval] = {}
        agreement: dict[str, float] = {}
        for name, data in self.judged.items():
            found = evaluate(proto, data, against=self.analysis.graph.proto, metrics=("top1", "agreement"), resamples=1)
            for into, estimate in ((top1, found["top1"].model), (change, found["top1"].difference)):
                assert estimate is not None
                into[name] = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
            agreement[name] = 100 * found["agreement"].model.value
        macs = plan.after["macs"] / plan.before["macs"]
        both = before[0] + planned[0], before[1] + planned[1]
        sizes = ", ".join(f"{height}x{width}" for height, width in plan.resolution.values())
        return Result(case, top1, change, agreement, macs, both, repaired, resolution=sizes)

    def _training(self, case: Case) -> Training | None:
        """Return how a case trains after least squares, if it does."""
        if case.recovery == DISTILLED:
            return Training(TrainSettings(epochs=_EPOCHS, seed=SEED))
        if case.recovery == GRADIENTS:
            return Training(mimicry(self.analysis.graph, epochs=_EPOCHS, minutes=None, seed=SEED), mimics=True)
        return None

    def _measure(self, criterion: str, calibration: Calibration) -> tuple[list[Curve], Times]:
        clock = _Clock()
        settings = PlanSettings(ratio=0.0, criterion=criterion, allocation="reconstruction", seed=SEED)
        return sensitivities(self.analysis, settings, self.batches(calibration)), clock.stop()


class _Clock:
    def __init__(self) -> None:
        self._start = perf_counter(), process_time()

    def stop(self) -> Times:
        return perf_counter() - self._start[0], process_time() - self._start[1]


def _first(data: Dataset, limit: int | None) -> Dataset:
    if limit is None or len(data) <= limit:
        return data
    return data.subset(np.sort(np.random.default_rng(SEED).choice(len(data), limit, replace=False)))


def read(path: Path, settings: Mapping[str, Any]) -> dict[Case, Result]:
    """Read earlier results with the same settings."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if {k: document["settings"].get(k) for k in settings} != dict(settings):
        log.print(f"{path} was measured with other settings: starting over")
        return {}
    found = (Result(**{**entry, "case": Case(**entry["case"])}) for entry in document["results"]["cases"])
    return {result.case: result for result in found}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Measure cases that match MODEL/MACS/ALLOCATION/CRITERION/RECOVERY/INPUTS/AXES. Repeatable, in this order.",
)
@click.option("--all", "whole", is_flag=True, help="Cross all criteria and recoveries on all models: days.")
@click.option("--minutes", type=float, default=None, help="Start no case after this many minutes.")
@click.option("--judged", type=click.IntRange(1), default=None, help="Largest number of samples of each test set.")
@click.option("--list", "listing", is_flag=True, help="List the cases and whether they are measured.")
def main(
    output: Path, only: tuple[str, ...], whole: bool, minutes: float | None, judged: int | None, listing: bool
) -> None:
    """Measure what earlier runs haven't, print and write."""
    settings = {"seed": SEED, "judged": judged, "clock": "cpu"}
    known = read(output / "benchmarks" / "recovery.json", settings)
    subjects = {subject.name: subject for subject in SUBJECTS if subject.path.exists()}
    installed = {name for name, *_ in packaged()}
    subjects |= {subject.name: subject for subject in PACKAGED if subject.name in installed}
    every = [case for case in dict.fromkeys(everything()) if case.model in subjects]
    offered = every if whole else [case for case in dict.fromkeys(selection()) if case.model in subjects]
    wanted = dict.fromkeys(c for pattern in only or ("*",) for c in offered if fnmatchcase(str(c), pattern))
    if listing:
        click.echo("\n".join(f"{'done' if case in known else 'open'}  {case}" for case in wanted))
        return
    start, open_, workshops = perf_counter(), [c for c in wanted if c not in known], dict[str, Workshop]()
    for i, case in enumerate(open_, 1):
        if minutes is not None and perf_counter() - start > 60 * minutes:
            break
        log.print(f"{i} of {len(open_)}: {case}")
        if case.model not in workshops:
            workshops = {case.model: Workshop(subjects[case.model], judged)}
        try:
            result = workshops[case.model].measure(case)
        except OnnxPruneError as error:
            result = Result.failed(case, f"{error.code}: {error.cause}")
        known[case] = result
        report([known[c] for c in every if c in known], settings).write(output)
    report([known[c] for c in every if c in known], settings).publish(output, whole=True)


if __name__ == "__main__":
    main()
