"""Compare a training step with torch and onnxruntime-training in one run: ``python -m benchmarks.training``.

It needs the plug-in: ``pip install plugins/onnxprune_ort_training``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from benchmarks.common import CLOCKS, Column, Report, Table, chosen, log, milliseconds, options
from benchmarks.small_networks import NETWORKS, build, export
from benchmarks.trainers import Step, draw_batch, eager, native, ort_training
from benchmarks.training_memory import peak_memory
from onnxprune.normalize import normalize
from onnxprune.report.layout import si
from onnxprune_ort_training.backend import Worker

NOTES = (
    "A step is forward, loss (cross-entropy), backward and AdamW, on random images of 3x32x32; batch normalizations "
    "use the batch's moments. Trainers are timed in an interleaved order, so background load affects all of them "
    "equally; times are medians. torch runs eagerly, with its own AdamW (`foreach`). onnxruntime-training 1.19.2 runs "
    "in its own process, and its time includes passing it the batch. CPU time is that of all threads and processes "
    "together.",
    "*Peak memory* is what three steps add to what the process held before it had the network: weights, gradients, "
    "optimizer state, activations, and the memory to prepare them. Each trainer runs in its own process, warmed up "
    "with a tiny network.",
    "*Loss* is that of the first step. It is the same for all, because they start with the same weights.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trainer on a network.

    Attributes:
        network: its name.
        trainer: name of the trainer.
        first: the loss of the first step.
        seconds: median duration of a step.
        ratio: duration over torch's, the median over rounds.
        memory: peak of bytes; None where that can't be measured.
    """

    network: str
    trainer: str
    first: float
    seconds: float
    ratio: float
    memory: int | None


def compare(name: str, size: int, rounds: int, threads: int, clock: str, python: Path | None) -> Iterator[Outcome]:
    """Time the trainers on a network in an interleaved order."""
    batch, module = draw_batch(size), build(name)
    model = normalize(export(module))
    now = CLOCKS[clock]
    with ExitStack() as stack:
        trainers: dict[str, Step] = {"torch": eager(module, batch, threads), "onnxprune": native(model, batch, threads)}
        if python is not None:
            trainers["ort-training"] = ort_training(model, batch, threads, stack.enter_context(Worker(python)))
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
        memory = peak_memory(trainer, name, size, threads, python)
        yield Outcome(name, trainer, first[trainer], median(found), ratio, memory)


COLUMNS: Sequence[Column[Outcome]] = (
    Column("trainer", lambda o: o.trainer, text=True),
    Column("loss", lambda o: f"{o.first:.5f}"),
    Column("step, ms", lambda o: milliseconds(o.seconds)),
    Column("over torch", lambda o: f"{o.ratio:.2f}"),
    Column("peak memory", lambda o: "unknown" if o.memory is None else si(o.memory, "B")),
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
