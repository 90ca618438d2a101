"""What pruning costs in accuracy, and what is won back without labels or gradients: criteria x recoveries x budgets.

Measured cases are kept in the JSON file, so that the benchmark can be stopped and goes on where it was; the tables are
of all that was measured so far.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, get_args

import click
import numpy as np

from benchmarks.common import DOCS, ROOT, Column, Report, Table, log
from onnxprune.budget import Target
from onnxprune.data import Dataset, open_data, read_recipe, split
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluate import evaluate
from onnxprune.importance import criteria
from onnxprune.pipeline import Allocation, Analysis, Settings, analyse, make_plan, prune, sensitivities
from onnxprune.plan import apply_plan
from onnxprune.recover import Batches, Inputs, Method, recover
from onnxprune.sensitivity import Curve

Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""

_SHARED = ROOT.parent / "shared"
_BATCH = 32
_SEED = 0
SHARES = (0.5, 0.75, 0.35)
NONE = "none"
RECOVERIES = ("reconstruct", NONE, *(m for m in get_args(Method) if m != "reconstruct"))


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model and its data.

    Attributes:
        name: its file.
        calibration: the data to calibrate on.
        limit: how many of them.
        judged: the data to judge by, by name; empty for the rest of the calibration's.
        recipe: how they become inputs.
    """

    name: str
    calibration: str
    limit: int
    judged: tuple[str, ...] = ()
    recipe: str = ""

    @property
    def path(self) -> Path:
        return _SHARED / "models" / f"{self.name}.onnx"

    def data(self, analysis: Analysis) -> tuple[Dataset, Mapping[str, Dataset]]:
        """Return what to calibrate on, and what to judge by."""

        def opened(file: str, limit: int | None = None) -> Dataset:
            recipe = read_recipe(self.recipe) if self.recipe else None
            return open_data(_SHARED / "data" / file, analysis.graph.proto, recipe=recipe, limit=limit, seed=_SEED)

        if self.judged:
            return opened(self.calibration, self.limit), {Path(f).stem: opened(f) for f in self.judged}
        whole = opened(self.calibration)
        calibration, rest = split(whole, len(whole) - self.limit, seed=_SEED)
        return calibration, {Path(self.calibration).stem: rest}


_CIFAR = ("cifar10_test423.npz", "cifar10_jpeg_test5000.npz")
SUBJECTS = (
    Subject("cifar_resnet56_dynamo", "cifar10_calib4660.npz", 512, _CIFAR),
    Subject("cifar_resnet20_ts", "cifar10_calib4660.npz", 512, _CIFAR),
    Subject("mobilenetv2_10_224_tf2_f32", "imagenet500_224.zip", 200, recipe="scale=1/127.5 mean=1 label_offset=1"),
    Subject("squeezenet_fp16_winml", "imagenet500_224.zip", 200, recipe="channels=BGR mean=103.94,116.78,123.68"),
    Subject("mlptiny_resnet8_cifar10", "cifar10_jpeg_train.zip", 512, _CIFAR[1:], recipe="scale=1"),
    Subject("mlptiny_kws_dscnn", "kws_mfcc_500.npz", 250),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure.

    Attributes:
        model: the subject's name.
        macs: the share of MACs that remains.
        allocation: where channels are taken.
        criterion: which channels.
        recovery: how the model is repaired.
    """

    model: str
    macs: float
    allocation: Allocation
    criterion: str
    recovery: str

    def __str__(self) -> str:
        """Write it as --only matches it."""
        return f"{self.model}/{self.macs}/{self.allocation}/{self.criterion}/{self.recovery}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        case: the case.
        top1: accuracy and its interval, in per cent, by the data judged on.
        change: of the accuracy against the dense model's on the same samples, with its interval, in points.
        agreement: share of the predictions that are the dense model's, in per cent.
        macs: the share that remained.
        plan: seconds of measuring and planning, wall-clock and processor.
        repair: seconds of repair, likewise.
        failure: the code of the error that there was instead.
    """

    case: Case
    top1: Mapping[str, Interval]
    change: Mapping[str, Interval]
    agreement: Mapping[str, float]
    macs: float
    plan: tuple[float, float]
    repair: tuple[float, float]
    failure: str = ""


def cases() -> Iterator[Case]:
    """Go through all cases, those that say most first."""
    weights = [name for name in criteria() if name not in ("obs", "l2")]
    plans: list[tuple[Allocation, str]] = [("reconstruction", "obs"), ("uniform", "l2"), ("reconstruction", "l2")]
    plans += [("uniform", name) for name in ("obs", *weights)] + [("global", "lamp"), ("global", "obs")]
    for subject, share, (allocation, criterion) in product(SUBJECTS, SHARES, plans):
        for recovery in RECOVERIES:
            yield Case(subject.name, share, allocation, criterion, recovery)


class Workshop:
    """A subject with what its cases share: the traced model, data, and sensitivities that were measured."""

    def __init__(self, subject: Subject, limit: int | None) -> None:
        self.analysis = analyse(subject.path)
        self.calibration, judged = subject.data(self.analysis)
        self.judged = {name: _first(data, limit) for name, data in judged.items()}
        self._curves = cache(self._measure)

    @property
    def batches(self) -> Batches:
        def again() -> Iterator[Inputs]:
            return (batch.inputs for batch in self.calibration.batches(_BATCH))

        return again

    def measure(self, case: Case) -> Result:
        """Plan, prune, repair and judge."""
        settings = Settings(
            target=Target("macs", case.macs), criterion=case.criterion, allocation=case.allocation, seed=_SEED
        )
        curves, before = None, (0.0, 0.0)
        if case.allocation == "reconstruction":
            curves, before = self._curves(settings.criterion)
        planning = _Clock()
        plan = make_plan(self.analysis, settings, batches=self.batches, curves=curves)
        pruned = prune(self.analysis, plan, check=False)
        planned = planning.stop()
        repairing = _Clock()
        if case.recovery != NONE:
            kept = apply_plan(self.analysis.graph, plan)
            method: Any = case.recovery
            recover(kept, pruned.proto, self.batches, method=method, seed=_SEED)
        repaired = repairing.stop()
        top1: dict[str, Interval] = {}
        change: dict[str, Interval] = {}
        agreement: dict[str, float] = {}
        for name, data in self.judged.items():
            found = evaluate(
                pruned.proto, data, against=self.analysis.graph.proto, metrics=("top1", "agreement"), resamples=1
            )
            for into, estimate in ((top1, found["top1"].model), (change, found["top1"].difference)):
                assert estimate is not None
                into[name] = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
            agreement[name] = 100 * found["agreement"].model.value
        macs = plan.after["macs"] / plan.before["macs"]
        both = before[0] + planned[0], before[1] + planned[1]
        return Result(case, top1, change, agreement, macs, both, repaired)

    def _measure(self, criterion: str) -> tuple[list[Curve], tuple[float, float]]:
        clock = _Clock()
        settings = Settings(ratio=0.0, criterion=criterion, allocation="reconstruction", seed=_SEED)
        return sensitivities(self.analysis, settings, self.batches), clock.stop()


class _Clock:
    def __init__(self) -> None:
        self._start = perf_counter(), process_time()

    def stop(self) -> tuple[float, float]:
        return perf_counter() - self._start[0], process_time() - self._start[1]


def _first(data: Dataset, limit: int | None) -> Dataset:
    if limit is None or len(data) <= limit:
        return data
    return data.subset(np.sort(np.random.default_rng(_SEED).choice(len(data), limit, replace=False)))


def read(path: Path, settings: Mapping[str, Any]) -> dict[Case, Result]:
    """Read what was measured before with the same settings."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if {k: document["settings"].get(k) for k in settings} != dict(settings):
        log.print(f"{path} was measured with other settings: beginning anew")
        return {}
    found = (Result(**{**entry, "case": Case(**entry["case"])}) for entry in document["results"]["cases"])
    return {result.case: result for result in found}


def report(results: Sequence[Result], settings: Mapping[str, Any]) -> Report:
    """Write a table for each model and data it was judged on."""
    tables = []
    for subject in SUBJECTS:
        own = [r for r in results if r.case.model == subject.name]
        for name in dict.fromkeys(name for r in own for name in r.top1):
            judged = [r for r in own if name in r.top1]
            tables.append(Table.of(f"{subject.name} on {name}", columns(name), judged))
    failed = [r for r in results if r.failure]
    if failed:
        reasons: Sequence[Column[Result]] = (
            Column("case", lambda r: str(r.case), text=True),
            Column("error", lambda r: r.failure, text=True),
        )
        tables.append(Table.of("What could not be done", reasons, failed))
    return Report(
        name="recovery",
        title="Accuracy after pruning, and what is won back without labels or gradients",
        notes=(
            "Models are pruned to a share of their multiply-accumulates and repaired from unlabelled inputs; accuracy "
            "is measured on other samples. *Allocation* says how many channels each layer loses, *criterion* which "
            "ones; reconstruction measures the outputs' error for every group of channels, with its readers refitted, "
            "and spends the budget where it costs least. Recovery refits all weights by least squares (reconstruct), "
            "the mean and variance of each channel (bn) or the mean only (bias).",
            "Intervals are of 95 %. *Change* is against the dense model on the same samples, in points. Times are "
            "seconds of processor time, of all threads: planning includes measuring, which cases share.",
            "MobileNetV2's and SqueezeNet's images are no validation set: their accuracies compare with the dense "
            "model's only.",
        ),
        tables=tables,
        settings=settings,
        results={"cases": [asdict(r) for r in results]},
    )


def columns(data: str) -> Sequence[Column[Result]]:
    """Return the columns of a table about the accuracy on some data."""

    def spread(values: Callable[[Result], Mapping[str, Interval]], sign: str) -> Callable[..., str]:
        def cell(result: Result) -> str:
            value, low, high = values(result)[data]
            return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

        return cell

    return (
        Column("MACs", lambda r: f"{r.macs:.2f}"),
        Column("allocation", lambda r: r.case.allocation, text=True),
        Column("criterion", lambda r: r.case.criterion, text=True),
        Column("recovery", lambda r: r.case.recovery, text=True),
        Column("top-1, %", spread(lambda r: r.top1, "")),
        Column("change, points", spread(lambda r: r.change, "+")),
        Column("agreement, %", lambda r: f"{r.agreement[data]:.1f}"),
        Column("plan, s", lambda r: f"{r.plan[1]:.0f}"),
        Column("repair, s", lambda r: f"{r.repair[1]:.0f}"),
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Measure cases that match MODEL/MACS/ALLOCATION/CRITERION/RECOVERY. Repeatable, in this order.",
)
@click.option("--minutes", type=float, default=None, help="Begin no case after so long.")
@click.option("--judged", type=click.IntRange(1), default=None, help="Judge by so many samples of each set at most.")
@click.option("--list", "listing", is_flag=True, help="List the cases and what was measured of them.")
def main(output: Path, only: tuple[str, ...], minutes: float | None, judged: int | None, listing: bool) -> None:
    """Measure recovery; go on from what was measured before."""
    settings = {"seed": _SEED, "judged": judged, "clock": "cpu"}
    known = read(output / "benchmarks" / "recovery.json", settings)
    every = {case: None for case in cases() if (_SHARED / "models" / f"{case.model}.onnx").exists()}
    wanted = dict.fromkeys(c for pattern in only or ("*",) for c in every if fnmatchcase(str(c), pattern))
    if listing:
        click.echo("\n".join(f"{'done' if case in known else 'open'}  {case}" for case in wanted))
        return
    subjects = {subject.name: subject for subject in SUBJECTS}
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
            result = Result(case, {}, {}, {}, 0.0, (0.0, 0.0), (0.0, 0.0), f"{error.code}: {error.cause}")
        known[case] = result
        report([known[c] for c in every if c in known], settings).write(output)
    report([known[c] for c in every if c in known], settings).publish(output, whole=True)


if __name__ == "__main__":
    main()
