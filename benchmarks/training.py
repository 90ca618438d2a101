"""A step of training beside torch and onnxruntime-training, in one run: ``python -m benchmarks.training``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.common import CLOCKS, Column, Report, Table, chosen, log, milliseconds, options
from benchmarks.small_networks import NETWORKS, SIZE, build, export
from onnxprune.normalise import normalise
from onnxprune.train.forward import feeds_of, forward
from onnxprune.train.machine import GraphMachine
from onnxprune.train.objective import objective, write_losses
from onnxprune.train.ort_forms import in_its_forms
from onnxprune.train.ort_training import Worker, loss_model, statistics_of
from onnxprune.train.parameters import trainable
from onnxprune.train.settings import TrainSettings
from onnxprune.train.step import build_step

Step = Callable[[], tuple[float, float]]
"""Makes a step; gives its loss, and CPU seconds that another process has used so far."""

Arrays = Mapping[str, NDArray[Any]]

SETTINGS = TrainSettings(optimiser="adamw", clip=0.0, norms="batch", decay=0.01, rate=1e-3)

NOTES = (
    "A step is forward, loss (cross-entropy), backward and AdamW, on random images of 3x32x32; batch normalisations "
    "use the batch's moments. All take turns, so that what disturbs the machine disturbs all; times are medians. "
    "torch runs eagerly, with its own AdamW (`foreach`). onnxruntime-training 1.19.2 runs in its own process, and its "
    "time includes handing it the batch. CPU time is that of all threads and processes together.",
    "*Loss* is that of the first step, which is the same for all: they start with the same weights.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trainer does on a network.

    Attributes:
        network: its name.
        trainer: the trainer's.
        first: the loss of the first step.
        seconds: of a step, the median.
        ratio: the same over torch's, the median over turns.
    """

    network: str
    trainer: str
    first: float
    seconds: float
    ratio: float


def native(model: ModelProto, batch: Arrays, threads: int) -> Step:
    """Steps of onnxprune."""
    goal = objective(model, SETTINGS, labelled=True, teacher=False)
    step = build_step(model, goal, SETTINGS, batch)
    machine = GraphMachine(step, providers=["CPUExecutionProvider"], threads=threads)
    return lambda: (machine.feed([batch], SETTINGS.peak)["loss"], 0.0)


def eager(module: torch.nn.Module, batch: Arrays, threads: int) -> Step:
    """Steps of torch."""
    torch.set_num_threads(threads)
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=SETTINGS.peak, weight_decay=SETTINGS.decay)
    image, labels = (torch.from_numpy(batch[n]) for n in ("image", "labels"))

    def step() -> tuple[float, float]:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(image), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.item(), 0.0

    return step


def ort_training(model: ModelProto, batch: Arrays, threads: int, python: Path, stack: ExitStack) -> Step:
    """Steps of onnxruntime-training."""
    graph = forward(model, {"image": batch["image"].shape}, trainable(model), norms="frozen", fast=False)
    goal = objective(model, SETTINGS, labelled=True, teacher=False)
    losses = write_losses(graph, model, goal, SETTINGS, batch)
    in_its_forms(graph.tape, norms="batch")
    worker = stack.enter_context(Worker(python))
    settings = {"optimiser": "AdamW", "attributes": {"weight_decay": SETTINGS.decay}}
    names = {"trained": list(graph.weights), "statistics": statistics_of(graph)}
    worker.open(loss_model(graph, losses, SETTINGS, feeds_of(graph, model)), {**settings, **names, "threads": threads})

    def step() -> tuple[float, float]:
        (loss,) = worker.ask({"command": "batch"}, batch)[0]["losses"]
        return loss, worker.ask({"command": "step", "rate": SETTINGS.peak})[0]["cpu"]

    return step


def compare(name: str, size: int, rounds: int, threads: int, clock: str, python: Path | None) -> Iterator[Outcome]:
    """Let the trainers take turns on a network."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 3, SIZE, SIZE)).astype(np.float32)
    batch: dict[str, NDArray[Any]] = {"image": image, "labels": rng.integers(0, 10, size)}
    module = build(name)
    model = normalise(export(module))
    now = CLOCKS[clock]
    with ExitStack() as stack:
        trainers: dict[str, Step] = {"torch": eager(module, batch, threads), "onnxprune": native(model, batch, threads)}
        if python is not None:
            trainers["ort-training"] = ort_training(model, batch, threads, python, stack)
        made = {trainer: step() for trainer, step in trainers.items()}
        first, elsewhere = ({trainer: found[i] for trainer, found in made.items()} for i in range(2))
        times: dict[str, list[float]] = {trainer: [] for trainer in trainers}
        for turn in range(rounds + 1):
            for trainer, step in trainers.items():
                gc.collect()
                start, before = now(), elsewhere[trainer]
                _, elsewhere[trainer] = step()
                if turn:
                    more = elsewhere[trainer] - before if clock == "cpu" else 0.0
                    times[trainer].append(now() - start + more)
    for trainer, found in times.items():
        ratio = median(a / b for a, b in zip(found, times["torch"], strict=True))
        yield Outcome(name, trainer, first[trainer], median(found), ratio)


COLUMNS: Sequence[Column[Outcome]] = (
    Column("trainer", lambda o: o.trainer, text=True),
    Column("loss", lambda o: f"{o.first:.5f}"),
    Column("step, ms", lambda o: milliseconds(o.seconds)),
    Column("over torch", lambda o: f"{o.ratio:.2f}"),
)


@click.command(help=__doc__)
@options
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples in a batch.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of each trainer.")
@click.option("--training-python", type=click.Path(path_type=Path), help="Interpreter with onnxruntime-training.")
def main(
    repeats: int, clock: str, only: str, output: Path, batch: int, threads: int, training_python: Path | None
) -> None:
    """Measure, print and write."""
    outcomes: dict[str, list[Outcome]] = {}
    for name in chosen(list(NETWORKS), only):
        log.print(name, style="dim")
        outcomes[name] = list(compare(name, batch, repeats, threads, clock, training_python))
    Report(
        name="training",
        title="A step of training",
        notes=NOTES,
        tables=[Table.of(name, COLUMNS, rows) for name, rows in outcomes.items()],
        settings={"repeats": repeats, "clock": clock, "batch": batch, "threads": threads},
        results={"outcomes": [o for rows in outcomes.values() for o in rows]},
    ).publish(output, whole=len(outcomes) == len(NETWORKS))


if __name__ == "__main__":
    main()
