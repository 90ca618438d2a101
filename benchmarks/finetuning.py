"""Real networks pruned, recovered and fine-tuned, stage by stage: ``python -m benchmarks.finetuning --shared DIR``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import click
from onnx import ModelProto

from benchmarks.common import Column, Report, Table, chosen, log, options
from onnxprune import Settings, Target, analyse, load, make_plan, prune
from onnxprune.data import Dataset, Recipe, open_data, read_recipe
from onnxprune.evaluate import evaluate
from onnxprune.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.train import Augmentation, TrainSettings, finetune

_CALIBRATION = 512
_IMAGENET = "scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225"

NOTES = (
    "A network is pruned to a share of its MACs, its channels chosen and then repaired with 512 unlabelled images "
    "(`prune --data`), and fine-tuned from there in two ways, each with the training images at hand: by distillation "
    "from the original, which needs no labels, and with labels as well. Accuracy is measured on images that no stage "
    "has seen.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A network and what it is pruned to.

    Attributes:
        model: its file.
        macs: the share of MACs that stays.
        train: images to learn from.
        tests: images to judge by.
        recipe: how they become inputs.
    """

    model: str
    macs: float
    train: str
    tests: tuple[str, ...]
    recipe: str


_TESTS = ("cifar10_test423.npz", "cifar10_jpeg_test5000.npz")
_CALIB = "cifar10_calib4660.npz"
CASES: dict[str, Case] = {
    "resnet56, 0.5": Case("cifar_resnet56_dynamo.onnx", 0.5, _CALIB, _TESTS, _IMAGENET),
    "resnet56, 0.35": Case("cifar_resnet56_dynamo.onnx", 0.35, _CALIB, _TESTS, _IMAGENET),
    "resnet20, 0.5": Case("cifar_resnet20_ts.onnx", 0.5, _CALIB, _TESTS, _IMAGENET),
    "resnet20, 0.35": Case("cifar_resnet20_ts.onnx", 0.35, _CALIB, _TESTS, _IMAGENET),
    "resnet8, 0.5": Case("mlptiny_resnet8_cifar10.onnx", 0.5, _CALIB, _TESTS, "scale=1"),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """What a network is worth after a stage.

    Attributes:
        network: its name.
        stage: the stage's.
        accuracy: top-1 on each test set.
        seconds: the time that the stage took.
    """

    network: str
    stage: str
    accuracy: tuple[float, ...]
    seconds: float


class Bench:
    """Goes through a case's stages."""

    def __init__(self, name: str, case: Case, shared: Path, settings: TrainSettings, limit: int | None) -> None:
        """Open the network and its data."""
        self.name, self.case, self.settings = name, case, settings
        self.dense = load(shared / "models" / case.model)
        self.recipe = read_recipe(case.recipe)
        self.train = self._open(shared / "data" / case.train, self.recipe, limit)
        self.tests = [self._open(shared / "data" / test, self.recipe, None) for test in case.tests]

    def stages(self) -> Iterator[Stage]:
        """Prune, recover, fine-tune."""
        yield self._stage("dense", self.dense.proto, perf_counter())
        started = perf_counter()
        analysis = analyse(self.dense)
        data = open_data_of(self.train, _CALIBRATION)
        target = Target("macs", self.case.macs)
        settings = Settings(target=target, criterion="obs", allocation="reconstruction")
        plan = make_plan(analysis, settings, batches=lambda: (b.inputs for b in data.batches(32)))
        pruned = prune(analysis, plan)
        yield self._stage("pruned", pruned.proto, started)
        started = perf_counter()
        recover(apply_plan(analysis.graph, plan), pruned.proto, lambda: (b.inputs for b in data.batches(32)))
        yield self._stage("recovered", pruned.proto, started)
        without = replace(self.settings, losses={"kl": 1.0})
        for stage, told in (("distilled, no labels", without), ("distilled, with labels", self.settings)):
            started = perf_counter()
            tuned = finetune(pruned.proto, self.train, teacher=self.dense, hold_out=0.05, settings=told)
            yield self._stage(stage, tuned.proto, started)

    def _stage(self, stage: str, proto: ModelProto, started: float) -> Stage:
        seconds = perf_counter() - started
        found = [evaluate(proto, test, metrics=["top1"], batch=128, resamples=1)["top1"] for test in self.tests]
        result = Stage(self.name, stage, tuple(score.model.value for score in found), seconds)
        log.print(f"{self.name}: {stage} {[f'{100 * a:.1f}' for a in result.accuracy]}, {seconds:.0f} s", style="dim")
        return result

    def _open(self, path: Path, recipe: Recipe, limit: int | None) -> Dataset:
        return open_data(path, self.dense.proto, recipe=recipe, limit=limit)


def open_data_of(data: Dataset, count: int) -> Dataset:
    """Return the first samples of data."""
    return data.subset(range(min(count, len(data))))


COLUMNS: Sequence[Column[Stage]] = (
    Column("stage", lambda s: s.stage, text=True),
    Column("test423", lambda s: f"{100 * s.accuracy[0]:.1f} %"),
    Column("jpeg_test5000", lambda s: f"{100 * s.accuracy[1]:.1f} %"),
    Column("time, s", lambda s: f"{s.seconds:.0f}"),
)


@click.command(help=__doc__)
@options
@click.option("--shared", required=True, type=click.Path(path_type=Path), help="Folder of models/ and data/.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Of each fine-tuning.")
@click.option("--limit", type=click.IntRange(1), help="Learn from so many images only.")
def main(repeats: int, clock: str, only: str, output: Path, shared: Path, epochs: int, limit: int | None) -> None:
    """Measure, print and write."""
    augmentation = Augmentation(flip=True, crop=4)
    settings = TrainSettings(epochs=epochs, batch=64, augmentation=augmentation, rate=0.01)
    names = chosen(list(CASES), only)
    found = {name: list(Bench(name, CASES[name], shared, settings, limit).stages()) for name in names}
    Report(
        name="finetuning",
        title="Fine-tuning real networks",
        notes=NOTES,
        tables=[Table.of(name, COLUMNS, rows) for name, rows in found.items()],
        settings={"clock": clock, "epochs": epochs, "limit": limit},
        results={"stages": [stage for rows in found.values() for stage in rows]},
    ).publish(output, whole=len(found) == len(CASES))


if __name__ == "__main__":
    main()
