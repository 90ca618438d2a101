"""Real networks pruned, recovered and fine-tuned, stage by stage.

Results are kept in the JSON file, so that an interrupted benchmark resumes. The tables show all results so far.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal, get_args

import click
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import DOCS, ROOT, Column, Report, Table, log
from onnxprune import PlanSettings, Target, analyze, load, prune
from onnxprune.data import Data, open_data, read_recipe
from onnxprune.evaluation import evaluate
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.settings.training import Augmentation, TrainSettings
from onnxprune.train import finetune

_SHARED = ROOT.parent / "shared"
_CALIBRATION = 512
_HELD_OUT = 0.02
_BATCH = 128
_TRAIN = ("cifar10_calib4660.npz", "cifar10_jpeg_train.zip")
TESTS = ("cifar10_test423", "cifar10_jpeg_test5000")

StageName = Literal["dense", "pruned", "recovered", "distilled", "distilled, with labels"]
STAGES: tuple[StageName, ...] = get_args(StageName)

NOTES = (
    "A network is pruned to a share of its MACs and repaired with 512 unlabeled images (`prune --data`). It is then "
    "fine-tuned in two ways (`finetune --teacher`): by distillation from the original, which needs no labels, and "
    "with labels as well. The training data are 4,660 training images of CIFAR-10 and {images} recompressed as JPEG, "
    "mirrored at random. Settings are the defaults of `finetune`, except for the number of epochs, which is {epochs}. "
    "Accuracy is measured on images that no stage has seen. Those of *jpeg_test5000* were recompressed too, which "
    "costs all networks about 10 points.",
    "*Change* is against the dense network on the same images, in points, with its 95 % interval. Times are seconds "
    "of processor time.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A network and its budget.

    Attributes:
        model: its file.
        macs: the share of MACs that is left.
        recipe: how images become inputs.
    """

    model: str
    macs: float
    recipe: str = "scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225"


CASES: Mapping[str, Case] = {
    "resnet56, 0.5": Case("cifar_resnet56_dynamo", 0.5),
    "resnet20, 0.5": Case("cifar_resnet20_ts", 0.5),
    "resnet8, 0.5": Case("mlptiny_resnet8_cifar10", 0.5, "scale=1"),
    "resnet20, 0.35": Case("cifar_resnet20_ts", 0.35),
    "resnet56, 0.35": Case("cifar_resnet56_dynamo", 0.35),
}

Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Accuracy of a network after a stage.

    Attributes:
        case: its name in `CASES`.
        stage: the name of the stage.
        top1: accuracy and its interval on each test set, in percent.
        change: accuracy minus the dense network's, with its interval, in points.
        seconds: duration of the stage, wall-clock and processor.
    """

    case: str
    stage: StageName
    top1: Mapping[str, Interval]
    change: Mapping[str, Interval]
    seconds: tuple[float, float]


class Bench:
    """Runs the stages of a case."""

    def __init__(self, name: str, settings: TrainSettings, images: Mapping[str, NDArray[Any]], threads: int) -> None:
        """Open the network and its data."""
        self._name, self._case, self._settings, self._threads = name, CASES[name], settings, threads
        self._dense = load(_SHARED / "models" / f"{self._case.model}.onnx")
        self._train = self._open(images)
        self._tests = {test: self._open(_SHARED / "data" / f"{test}.npz") for test in TESTS}

    def stages(self, wanted: Sequence[StageName]) -> Iterator[Stage]:
        """Prune, recover, fine-tune; yield an evaluation after each wanted stage."""
        steps = self._steps()
        for stage in STAGES:
            if stage not in wanted and stage.startswith("distilled"):
                continue
            start = perf_counter(), process_time()
            proto = steps[stage]()
            seconds = perf_counter() - start[0], process_time() - start[1]
            if stage in wanted:
                yield self._judged(stage, proto, seconds)

    def _steps(self) -> Mapping[StageName, Callable[[], ModelProto]]:
        analysis = analyze(self._dense)
        calibration = self._train.subset(range(_CALIBRATION))

        def batches() -> Iterator[Mapping[str, NDArray[Any]]]:
            return (b.inputs for b in calibration.batches(32))

        plan = pruned = None

        def pruning() -> ModelProto:
            nonlocal plan, pruned
            target = Target("macs", self._case.macs)
            settings = PlanSettings(target=target, criterion="obs", allocation="reconstruction")
            plan = op.plan(analysis, settings, data=batches)
            pruned = prune(analysis, plan).proto
            return pruned

        def recovering() -> ModelProto:
            assert plan is not None and pruned is not None
            recover(apply_plan(analysis.graph, plan), pruned, batches)
            return pruned

        def distilling(settings: TrainSettings) -> ModelProto:
            assert pruned is not None
            told = {"teacher": self._dense, "hold_out": _HELD_OUT, "settings": settings, "threads": self._threads}
            return finetune(pruned, self._train, **told).proto  # type: ignore[arg-type]

        return {
            "dense": lambda: self._dense.proto,
            "pruned": pruning,
            "recovered": recovering,
            "distilled": lambda: distilling(replace(self._settings, losses={"kl": 1.0})),
            "distilled, with labels": lambda: distilling(self._settings),
        }

    def _judged(self, stage: StageName, proto: ModelProto, seconds: tuple[float, float]) -> Stage:
        top1: dict[str, Interval] = {}
        change: dict[str, Interval] = {}
        for name, data in self._tests.items():
            score = evaluate(proto, data, against=self._dense.proto, metrics=["top1"], batch=_BATCH)["top1"]
            for into, estimate in ((top1, score.model), (change, score.difference)):
                assert estimate is not None
                into[name] = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
        return Stage(self._name, stage, top1, change, seconds)

    def _open(self, spec: Path | Mapping[str, NDArray[Any]]) -> Data:
        return open_data(spec, self._dense.proto, recipe=read_recipe(self._case.recipe))


def training_images(limit: int | None) -> dict[str, NDArray[Any]]:
    """Read the training images with their labels, lossless ones first."""
    from PIL import Image

    with np.load(_SHARED / "data" / _TRAIN[0]) as lossless:
        images, labels = list(lossless["images"]), list(lossless["labels"])
    with zipfile.ZipFile(_SHARED / "data" / _TRAIN[1]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        classes = sorted({name.partition("/")[0] for name in names})
        order = np.random.default_rng(0).permutation(len(names))[:limit]
        for name in (names[i] for i in order):
            images.append(np.asarray(Image.open(BytesIO(archive.read(name))).convert("RGB")))
            labels.append(classes.index(name.partition("/")[0]))
    return {"images": np.stack(images), "labels": np.array(labels, np.int64)}


def read(path: Path, settings: Mapping[str, Any]) -> dict[tuple[str, str], Stage]:
    """Read earlier results with the same settings."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if {k: document["settings"].get(k) for k in settings} != dict(settings):
        log.print(f"{path} was measured with other settings: starting over")
        return {}
    found = (Stage(**entry) for entry in document["results"]["stages"])
    return {(stage.case, stage.stage): stage for stage in found}


def report(stages: Sequence[Stage], settings: Mapping[str, Any]) -> Report:
    """Return a report with a table for each case."""
    cases = dict.fromkeys(stage.case for stage in stages)
    return Report(
        name="finetuning",
        title="Fine-tuning real networks",
        notes=[note.format(epochs=settings["epochs"], images=f"{settings['limit'] or 50_000:,}") for note in NOTES],
        tables=[Table.of(f"{case} of the MACs", COLUMNS, [s for s in stages if s.case == case]) for case in cases],
        settings=settings,
        results={"stages": [asdict(stage) for stage in stages]},
    )


def _value(test: str) -> Callable[[Stage], str]:
    return lambda stage: f"{stage.top1[test][0]:.1f}"


def _change(test: str) -> Callable[[Stage], str]:
    return lambda stage: "{:+.1f} ({:+.1f} to {:+.1f})".format(*stage.change[test])


COLUMNS: Sequence[Column[Stage]] = (
    Column("stage", lambda s: s.stage, text=True),
    *(
        column
        for test in TESTS
        for column in (
            Column(f"{test.removeprefix('cifar10_')}, %", _value(test)),
            Column("change, points", _change(test)),
        )
    ),
    Column("time, s", lambda s: f"{s.seconds[1]:.0f}"),
)


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Measure only matching cases, in this order. Repeatable.",
)
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Epochs of each fine-tuning.")
@click.option("--limit", type=click.IntRange(1), help="Train on this many of the recompressed images.")
@click.option("--minutes", type=float, default=None, help="Start no stage after this many minutes.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of training.")
def main(
    output: Path, only: tuple[str, ...], epochs: int, limit: int | None, minutes: float | None, threads: int
) -> None:
    """Measure what earlier runs haven't, print and write."""
    told = {"epochs": epochs, "limit": limit, "clock": "cpu"}
    settings = TrainSettings(epochs=epochs, augmentation=Augmentation(flip=True))
    known = read(output / "benchmarks" / "finetuning.json", told)
    wanted = dict.fromkeys(name for pattern in only or ("*",) for name in CASES if fnmatchcase(name, pattern))
    start, images = perf_counter(), training_images(limit)

    def so_far() -> Report:
        return report([known[key] for case in CASES for stage in STAGES if (key := (case, stage)) in known], told)

    for name in wanted:
        lacking = [stage for stage in STAGES if (name, stage) not in known]
        stages = Bench(name, settings, images, threads).stages(lacking) if lacking else iter(())
        while minutes is None or perf_counter() - start < 60 * minutes:
            if (stage := next(stages, None)) is None:
                break
            known[name, stage.stage] = stage
            accuracy = ", ".join(f"{value:.1f}" for value, *_ in stage.top1.values())
            log.print(f"{name}: {stage.stage}: {accuracy} %, {stage.seconds[1]:.0f} s", style="dim")
            so_far().write(output)
    so_far().publish(output, whole=True)


if __name__ == "__main__":
    main()
