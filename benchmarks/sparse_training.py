"""Sparse training: what each method leaves of a network's accuracy, with a teacher and without labels.

What is measured is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from onnx import numpy_helper

import onnxprune as op
from benchmarks.common import ROOT, Column, Kept, Report, Table, options, with_state
from benchmarks.recovery_cases import SHARED
from onnxprune.report.layout import percent
from onnxprune.settings.training import Augmentation, TrainSettings
from onnxprune.train import finetune

METHODS: tuple[Any, ...] = ("dense", "rigl", "gmp", "magnitude, then trained")

NOTES = (
    "A trained network is trained further with itself as teacher and no labels, by LAMB in batches of 64. *Magnitude, "
    "then trained* zeros the smallest weights of all layers at once, and training keeps the zeros. Top-1 is on test "
    "images, with the change against the network before training and its 95 % interval; each is one run. The papers "
    "train for hundreds of epochs on 50,000 images, and lose less: a few hundred steps leave what grows no time.",
)
ABOUT = {
    "digits": "*digits* is the digits network of the repository, trained for 20 epochs on 1347 images.",
    "resnet20": "*resnet20* is a ResNet-20 for CIFAR-10 (92 % top-1), trained for 6 epochs on 4660 images, flipped and "
    "shifted by up to 4 pixels, and judged on 5000 that were recompressed as JPEG, which costs all about 12 points.",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained network.

    Attributes:
        model: its file.
        data: what it is trained on.
        judged: what it is judged on.
        epochs: passes through the data.
        rate: the peak learning rate.
        changes: random changes of images.
        sparsities: the shares of zeros that are asked for.
    """

    model: Path
    data: Path
    judged: Path
    epochs: int
    rate: float
    changes: Augmentation = field(default_factory=Augmentation)
    sparsities: tuple[float, ...] = (0.9,)


_CIFAR = SHARED / "data"
SUBJECTS = {
    "digits": Subject(
        ROOT / "models" / "digits_resnet.onnx",
        ROOT / "models" / "digits_train.npz",
        ROOT / "models" / "digits_test.npz",
        epochs=20,
        rate=0.005,
        sparsities=(0.9, 0.98),
    ),
    "resnet20": Subject(
        SHARED / "models" / "cifar_resnet20_ts.onnx",
        _CIFAR / "cifar10_calib4660.npz",
        _CIFAR / "cifar10_jpeg_test5000.npz",
        epochs=6,
        rate=0.005,
        changes=Augmentation(flip=True, crop=4),
    ),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a method leaves.

    Attributes:
        model: the network.
        asked: the share of zeros that was asked for.
        method: the method; "dense" trains all weights.
        zeros: the share of zeros of all layers' weights.
        top1: accuracy.
        change: its change, with its interval.
        agreement: with the network before training.
        seconds: the time of training.
    """

    model: str
    asked: float
    method: str
    zeros: float
    top1: float
    change: tuple[float, float, float]
    agreement: float
    seconds: float


def measured(name: str, sparsity: float, method: Any, threads: int | None) -> Found:
    """Train a network by a method."""
    subject = SUBJECTS[name]
    source, start = op.load(subject.model).proto, op.load(subject.model).proto
    if method == METHODS[-1]:
        layers = {t.name: numpy_helper.to_array(t) for t in start.graph.initializer if len(t.dims) > 1}
        limit = np.quantile(np.abs(np.concatenate([a.ravel() for a in layers.values()])), sparsity)
        for tensor in start.graph.initializer:
            if (array := layers.get(tensor.name)) is not None:
                cut = np.where(np.abs(array) < limit, np.float32(0), array)
                tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))
    sparse: dict[str, Any] = {"sparse": method, "sparsity": sparsity} if method in METHODS[1:3] else {}
    settings = TrainSettings(
        epochs=subject.epochs, rate=subject.rate, losses={"kl": 1.0}, augmentation=subject.changes, **sparse
    )
    data = op.open_data(subject.data, source)
    began = perf_counter()
    tuned = finetune(start, data, teacher=source, settings=settings, hold_out=0.05, threads=threads)
    seconds = perf_counter() - began
    found = op.evaluate(tuned.proto, op.open_data(subject.judged, source), against=source)
    weights = [numpy_helper.to_array(t) for t in tuned.proto.graph.initializer if len(t.dims) > 1]
    zeros = float(np.mean(np.concatenate([w.ravel() for w in weights]) == 0))
    change = found["top1"].difference
    assert change is not None
    interval = change.value, change.low, change.high
    return Found(
        name, sparsity, method, zeros, found["top1"].model.value, interval, found["agreement"].model.value, seconds
    )


@click.command()
@options
@with_state
@click.option("--threads", type=int, help="Threads within an operator.")
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None, threads: int | None) -> None:
    """Train networks by each method."""
    cases = [(n, share, m) for n, s in SUBJECTS.items() if s.model.is_file() for share in s.sparsities for m in METHODS]
    everything = {f"{name}/{share:.0%}/{method}": (name, share, method) for name, share, method in cases}
    found = Kept(Found, state).measure(list(everything), only, lambda case: measured(*everything[case], threads))
    columns: list[Column[Found]] = [
        Column("method", lambda f: f.method, True),
        Column("zeros", lambda f: percent(f.zeros)),
        Column("top-1", lambda f: percent(f.top1)),
        Column("change", lambda f: "{:+.1f} pt ({:+.1f} to {:+.1f})".format(*(100 * v for v in f.change))),
        Column("agreement", lambda f: percent(f.agreement)),
        Column("took", lambda f: f"{f.seconds:.0f} s"),
    ]
    tables = [
        Table.of(f"{n}, {share:.0%} of the weights zero", columns, own)
        for n, share in dict.fromkeys((f.model, f.asked) for f in found)
        if (own := [f for f in found if (f.model, f.asked) == (n, share)])
    ]
    settings = {"clock": "wall"}
    notes = (*NOTES, *(ABOUT[n] for n in dict.fromkeys(f.model for f in found)))
    report = Report("sparse_training", "Sparse training", notes, tables, settings, {"methods": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
