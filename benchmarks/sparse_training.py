"""Sparse training: what each method leaves of a network's accuracy, with a teacher and without labels.

What is measured is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from onnx import numpy_helper

import onnxprune as op
from benchmarks.common import Column, Report, Table, chosen, log, options
from benchmarks.recovery_cases import SHARED
from onnxprune.report.layout import percent
from onnxprune.settings.training import Augmentation, TrainSettings
from onnxprune.train import finetune

MODEL = SHARED / "models" / "cifar_resnet20_ts.onnx"
TRAINED, JUDGED = "cifar10_calib4660.npz", "cifar10_jpeg_test5000.npz"
EPOCHS, RATE, SPARSITY = 6, 0.005, 0.9
METHODS: tuple[Any, ...] = ("dense", "rigl", "set", "gmp", "magnitude, then trained")

NOTES = (
    f"A trained ResNet-20 for CIFAR-10 (92 % top-1) is trained for {EPOCHS} epochs on {TRAINED.split('.')[0]}, 4660 "
    f"training images, with itself as teacher and no labels: LAMB, peak rate {RATE}, batches of 64, flipped and "
    "shifted by up to 4 pixels. *Magnitude, then trained* zeros the smallest weights of all layers at once, and "
    "training keeps the zeros. Top-1 is on 5000 test images (recompressed as JPEG, which costs all models about 12 "
    "points), with the change against the network before training and its 95 % interval. The papers train for "
    "hundreds of epochs on 50,000 images.",
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a method leaves.

    Attributes:
        method: the method; "dense" trains all weights.
        zeros: the share of zeros of all layers' weights.
        top1: accuracy.
        change: its change, with its interval.
        agreement: with the network before training.
        seconds: the time of training.
    """

    method: str
    zeros: float
    top1: float
    change: tuple[float, float, float]
    agreement: float
    seconds: float


def measured(method: Any, epochs: int, threads: int | None) -> Found:
    """Train the network by a method."""
    source = op.load(MODEL).proto
    start = op.load(MODEL).proto
    if method == METHODS[-1]:
        layers = {t.name: numpy_helper.to_array(t) for t in start.graph.initializer if len(t.dims) > 1}
        limit = np.quantile(np.abs(np.concatenate([a.ravel() for a in layers.values()])), SPARSITY)
        for tensor in start.graph.initializer:
            if (array := layers.get(tensor.name)) is not None:
                cut = np.where(np.abs(array) < limit, np.float32(0), array)
                tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))
    sparse: dict[str, Any] = {"sparse": method, "sparsity": SPARSITY} if method in METHODS[1:4] else {}
    settings = TrainSettings(
        epochs=epochs, rate=RATE, losses={"kl": 1.0}, augmentation=Augmentation(flip=True, crop=4), **sparse
    )
    data = op.open_data(SHARED / "data" / TRAINED, source)
    began = perf_counter()
    tuned = finetune(start, data, teacher=source, settings=settings, hold_out=0.05, threads=threads)
    seconds = perf_counter() - began
    found = op.evaluate(tuned.proto, op.open_data(SHARED / "data" / JUDGED, source), against=source)
    weights = [numpy_helper.to_array(t) for t in tuned.proto.graph.initializer if len(t.dims) > 1]
    zeros = float(np.mean(np.concatenate([w.ravel() for w in weights]) == 0))
    change = found["top1"].difference
    assert change is not None
    interval = change.value, change.low, change.high
    return Found(method, zeros, found["top1"].model.value, interval, found["agreement"].model.value, seconds)


@click.command()
@options
@click.option("--state", type=click.Path(path_type=Path), help="File that keeps what is measured; a later run goes on.")
@click.option("--epochs", default=EPOCHS, show_default=True, help="Passes through the data.")
@click.option("--threads", type=int, help="Threads within an operator.")
def main(
    output: Path, only: str, repeats: int, clock: str, state: Path | None, epochs: int, threads: int | None
) -> None:
    """Train a network by each method."""
    done: dict[str, Found] = {}
    if state is not None and state.is_file():
        done = {name: Found(**kept) for name, kept in map(json.loads, state.read_text().splitlines())}
    for method in chosen(METHODS, only):
        if method in done:
            continue
        log.print(method, style="dim")
        done[method] = measured(method, epochs, threads)
        if state is not None:
            with state.open("a", encoding="utf-8") as file:
                file.write(json.dumps([method, asdict(done[method])]) + "\n")
    found = [done[method] for method in METHODS if method in done]
    columns: list[Column[Found]] = [
        Column("method", lambda f: f.method, True),
        Column("zeros", lambda f: percent(f.zeros)),
        Column("top-1", lambda f: percent(f.top1)),
        Column("change", lambda f: "{:+.1f} pt ({:+.1f} to {:+.1f})".format(*(100 * v for v in f.change))),
        Column("agreement", lambda f: percent(f.agreement)),
        Column("took", lambda f: f"{f.seconds:.0f} s"),
    ]
    table = Table.of(f"ResNet-20, {SPARSITY:.0%} of the weights zero", columns, found)
    settings = {"clock": "wall", "epochs": epochs, "rate": RATE, "sparsity": SPARSITY}
    Report("sparse_training", "Sparse training", NOTES, [table], settings, {"methods": found}).publish(
        output, whole=only == "*"
    )


if __name__ == "__main__":
    main()
