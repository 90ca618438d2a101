"""Commands killed at random moments: ``python -m benchmarks.fuzz kills``."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.common import DOCS, ROOT, Column, Report, Table, log

NOTES = (
    "Commands are stopped by SIGKILL at a random moment. *Half-written* counts outputs that exist and differ from "
    "those of a run that wasn't stopped. Commands that keep their progress (`--checkpoint`, `sensitivity -o`) "
    "are then run again to resume; *differs* counts results that aren't the same bytes.",
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command to be killed.

    Attributes:
        name: its name.
        args: its arguments; OUT stands for the output, KEPT for the file that keeps its progress.
        resume: further arguments to resume, None if it keeps no progress.
    """

    name: str
    args: tuple[str, ...]
    resume: tuple[str, ...] | None = None


def commands(folder: Path) -> list[Command]:
    """Return the commands, and write the data that they read."""
    model = str(ROOT / "models" / "digits_resnet.onnx")
    with np.load(ROOT / "models" / "digits_test.npz", allow_pickle=False) as found:
        images = found["images"]
    np.savez(folder / "data.npz", image=images[:256])
    data = ("--data", str(folder / "data.npz"))
    return [
        Command("prune", ("prune", model, "-o", "OUT", "--target", "macs=0.5")),
        Command("prune --data", ("prune", model, "-o", "OUT", "--target", "macs=0.5", *data)),
        *(
            Command(
                f"prune --data {what[0]} --checkpoint",
                ("prune", model, "-o", "OUT", *what, *data, "--threads", "1", "--checkpoint", "KEPT"),
                ("--resume",),
            )
            for what in (("--target", "macs=0.5"), ("--max-drop", "0.05"))
        ),
        Command(
            "finetune",
            (
                *("finetune", model, "-o", "OUT", "--teacher", model, *data, "--epochs", "2", "--batch", "16"),
                *("--threads", "1", "--checkpoint", "KEPT", "--every", "5"),
            ),
            ("--resume",),
        ),
        Command("sensitivity", ("sensitivity", model, "-o", "OUT", *data, "--limit", "64"), ()),
    ]


def run_kill(command: Command, folder: Path, rng: random.Random) -> str:
    """Kill a command at a random moment of its run; return how it ends."""
    reference = folder / f"{command.name}.reference"
    if not reference.exists():
        started = time.monotonic()
        _start(command, reference, folder / f"{command.name}.kept").wait()
        (folder / f"{command.name}.seconds").write_text(str(time.monotonic() - started))
    needed = folder / f"{command.name}.seconds"
    seconds = float(needed.read_text())
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out, kept = Path(name) / "out", Path(name) / "kept.npz"
        process = _start(command, out, kept)
        started = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds))
        if ended := process.poll() is not None:
            needed.write_text(str(min(seconds, time.monotonic() - started)))  # the machine was busy before
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = reference.read_bytes()
        if command.resume is None:
            partial = out.exists() and out.read_bytes() != whole
            return "half-written" if partial else "ended first" if ended else "killed"
        if command.name != "sensitivity" and out.exists():
            return "ended first" if out.read_bytes() == whole else "half-written"
        if out.exists() and ended:
            return "ended first"
        if _start(command, out, kept, *command.resume).wait() or out.read_bytes() != whole:
            return "differs"
        return "resumed"


def _start(command: Command, out: Path, kept: Path, *more: str) -> subprocess.Popen[bytes]:
    names = {"OUT": str(out), "KEPT": str(kept)}
    args = [names.get(arg, arg) for arg in command.args]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "onnxprune", *args, *more, "-q"], **quiet)  # type: ignore[call-overload, no-any-return]


@click.command()
@click.option("--kills", default=200, show_default=True, help="Number of runs that are killed before they end.")
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to.")
def kills(kills: int, output: Path) -> None:
    """Kill commands at random moments; look at what they leave."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        every = commands(Path(name))
        number = hit = 0
        while hit < kills:
            command = every[number % len(every)]
            end = run_kill(command, Path(name), random.Random(number))
            counts.setdefault(command.name, Counter())[end] += 1
            number, hit = number + 1, hit + (end != "ended first")
            log.print(f"{hit} of {kills}: {command.name}: {end}")
    ends = ("killed", "ended first", "resumed", "half-written", "differs")

    def of(end: str) -> Column[str]:
        return Column(end, lambda command: str(counts[command][end]))

    columns: list[Column[str]] = [Column("command", str, text=True), *map(of, ends)]
    table = Table.of(f"{kills} commands killed", columns, list(counts))
    settings = {"kills": kills, "clock": "wall"}
    Report("fuzz", "Killed commands", NOTES, [table], settings, counts, suffix="_kills").publish(output, whole=True)
