"""Damaged files and killed commands: ``python -m benchmarks.fuzz files``, ``packed`` and ``kills``.

`files` damages real models, field by field or byte by byte, and plans, prunes and proves each. The only allowed ends
are a proved model and an error with a code. `packed` damages packed models, which are unpacked. `kills` stops commands
by SIGKILL at random moments, looks for half-written outputs, and compares the bytes of a resumed run with those of one
that wasn't stopped. All are seeded, keep what they have found in a JSON file, and resume from it. A resumed run repeats
the cases that ended badly: they may be mended.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import click

from benchmarks.common import DOCS, ROOT, Column, Report, Table, log
from benchmarks.damage import damage_packed, damaged
from benchmarks.kills import kills

SOURCES = (
    *("models/digits_resnet.onnx", "models/digits_cnn_dynamo.onnx"),
    *(f"../shared/models/{name}.onnx" for name in ("mnist_cntk", "winml_cifar10_cnn", "mlptiny_kws_dscnn")),
    *(f"../shared/models/{name}.onnx" for name in ("mlptiny_resnet8_cifar10", "silero_vad_op18_ifless", "dtln_2")),
    *(f"../shared/models/{name}.onnx" for name in ("gtcrn_simple", "ultraface_rfb320")),
)
SECONDS = 60.0  # after which a file counts as a hang
MEMORY = 1 << 30  # bytes allowed in addition to three times the file

_SAVED_EVERY = 2000

NOTES = (
    f"Real models are damaged at random, half of them byte by byte, half field by field, and each is planned, pruned "
    f"to half of its channels and proved. An end is a proved model, or the code of the error. A *bug* is any other "
    f"exception, a *hang* takes more than {SECONDS:.0f} s, a *crash* ends the process, and *memory* is a peak of more "
    "than three times the file and 1 GiB above that of the idle process.",
)
PACKED_NOTES = (
    "Packed models are damaged at random, and each is unpacked. Half are damaged byte by byte, which checksums tell. "
    "In the others, values of the directory or bytes of the compressed streams are changed, and the checksums made "
    "right again, except those of the model's files. An end is a model whose checksum holds, or the code of the error. "
    f"A *bug* is any other exception, or a file where none should be; a *hang* takes more than {SECONDS:.0f} s, a "
    "*crash* ends the process, and *memory* is a peak of more than three times the file and 1 GiB above that of the "
    "idle process.",
)


# Files


def attempt_packed(data: bytes) -> str:
    """Unpack a packed model; return how it ends."""
    import onnxprune as op

    with tempfile.TemporaryDirectory() as folder:
        given, into = Path(folder) / "model.onnxpack", Path(folder) / "to"
        given.write_bytes(data)
        into.mkdir()
        end = "unpacked"
        try:
            op.unpack(given, into / "model.onnx")
        except op.OnnxPruneError as error:
            end = error.code
        except Exception as error:
            place = [f for f in traceback.extract_tb(error.__traceback__) if "onnxprune" in f.filename][-1]
            return f"bug: {type(error).__name__} at {Path(place.filename).name}:{place.name}"
        if sorted(path.name for path in Path(folder).iterdir()) != ["model.onnxpack", "to"]:
            return "bug: a file outside of the folder"
        return "bug: a file of an error" if end != "unpacked" and any(into.iterdir()) else end


def attempt(data: bytes) -> str:
    """Plan, prune and prove a model; return how it ends."""
    import onnxprune as op

    try:
        analysis = op.analyze(data)
        op.prune(analysis, op.plan(analysis, ratio=0.5))
    except op.OnnxPruneError as error:
        return error.code
    except Exception as error:
        place = [f for f in traceback.extract_tb(error.__traceback__) if "onnxprune" in f.filename][-1]
        return f"bug: {type(error).__name__} at {Path(place.filename).name}:{place.name}"
    return "proved"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of files to damage.

    Attributes:
        prepare: makes the bytes that are damaged from a model's file.
        damage: returns a damaged copy; None if it couldn't be written.
        attempt: returns how it ends.
    """

    prepare: Callable[[Path], bytes]
    damage: Callable[[bytes, random.Random], bytes | None]
    attempt: Callable[[bytes], str]


def _packed(path: Path) -> bytes:
    import onnxprune as op

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "packed.onnxpack"
        op.pack(path, target)
        return target.read_bytes()


KINDS: Mapping[str, Kind] = {
    "models": Kind(Path.read_bytes, damaged, attempt),
    "packed": Kind(_packed, damage_packed, attempt_packed),
}


def _work(link: Connection, sources: Sequence[bytes], kind: str) -> None:
    """Answer numbers of cases with their ends and peaks of memory, until the parent closes the link."""
    os.nice(10)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # ONNX Runtime writes a line for each error
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    KINDS[kind].attempt(sources[0])  # imports everything
    idle = _memory("VmRSS")
    link.send((-1, "ready", 0))
    with suppress(EOFError):
        while True:
            case = link.recv()
            source, data = case_of(case, sources, kind)
            if data is None:
                link.send((case, "unwritable", 0))
                continue
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            end = KINDS[kind].attempt(data)
            over = _memory("VmHWM") - idle - 3 * len(sources[source]) - MEMORY
            link.send((case, "memory" if over > 0 else end, max(over, 0)))


def case_of(case: int, sources: Sequence[bytes], kind: str) -> tuple[int, bytes | None]:
    """Return the number of the model of a case, and its damaged bytes."""
    rng = random.Random(case)
    source = rng.randrange(len(sources))
    return source, KINDS[kind].damage(sources[source], rng)


def _memory(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system doesn't report {name}")


class _Worker:
    """A process that works on one case at a time, and may die."""

    def __init__(self, sources: Sequence[bytes], kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, sources, kind), daemon=True)
        self.process.start()
        other.close()
        self.usable = True
        self.case = -1
        self.since = 0.0
        self.link.recv()  # waits until everything is imported

    def give(self, case: int) -> None:
        self.case, self.since = case, time.monotonic()
        self.link.send(case)

    def end(self) -> str | None:
        """Return how the case ended; None if it is still running."""
        if self.link.poll():
            try:
                return str(self.link.recv()[1])
            except EOFError:
                self.usable = False
                self.process.join()
                return f"crash: signal {-(self.process.exitcode or 0)}"
        if time.monotonic() - self.since > SECONDS:
            self.usable = False
            self.process.kill()
            return "hang"
        return None


def run_files(sources: Sequence[bytes], cases: Sequence[int], workers: int, kind: str) -> Iterator[tuple[int, str]]:
    """Run cases side by side; yield the number and the end of each."""
    waiting = iter(cases)
    running: list[_Worker] = []
    for case in itertools.islice(waiting, workers):
        running.append(_Worker(sources, kind))
        running[-1].give(case)
    while running:
        wait([worker.link for worker in running], timeout=1)
        for worker in list(running):
            if (end := worker.end()) is None:
                continue
            yield worker.case, end
            running.remove(worker)
            if (following := next(waiting, None)) is None:
                worker.process.kill()
                continue
            heir = worker if worker.usable else _Worker(sources, kind)
            heir.give(following)
            running.append(heir)


# Commands


@click.group()
def main() -> None:
    """Damage files, or kill commands."""


def _damaging(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the commands that damage files."""
    for option in (
        click.option("--workers", default=2, show_default=True, help="Processes."),
        click.option("--minutes", default=0.0, help="Stop after this time; the next run goes on. 0 for no limit."),
        click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--cases", default=100_000, show_default=True, help="Number of damaged files.")
@_damaging
def files(cases: int, workers: int, minutes: float, output: Path) -> None:
    """Damage real models; count how they end."""
    _count("models", cases, workers, minutes, output, "Damaged files", NOTES, suffix="")


@main.command()
@click.option("--cases", default=2000, show_default=True, help="Number of damaged files.")
@_damaging
def packed(cases: int, workers: int, minutes: float, output: Path) -> None:
    """Damage packed models; count how they end."""
    _count("packed", cases, workers, minutes, output, "Damaged packed files", PACKED_NOTES, suffix="_packed")


def _count(
    kind: str,
    cases: int,
    workers: int,
    minutes: float,
    output: Path,
    title: str,
    notes: Sequence[str],
    *,
    suffix: str,
) -> None:
    paths = [ROOT / source for source in SOURCES]
    present = [path for path in paths if path.exists()]
    sources = [KINDS[kind].prepare(path) for path in present]
    store = output / "benchmarks" / f"fuzz{suffix}_cases.json"
    state: dict[str, Any] = {"done": 0, "ends": {}, "unusual": {}}
    if store.exists():
        state = json.loads(store.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter(state["ends"])
    unusual: dict[str, str] = state["unusual"]
    done = int(state["done"])
    started = time.monotonic()

    def keep() -> None:
        store.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"done": done, "ends": dict(sorted(counts.items())), "unusual": unusual}, indent=1)
        store.write_text(text + "\n", encoding="utf-8")

    def count(case: int, end: str) -> None:
        counts[end] += 1
        if end.partition(":")[0] in ("bug", "hang", "crash", "memory"):
            unusual[str(case)] = end
            log.print(f"case {case} ({present[case_of(case, sources, kind)[0]].name}): {end}", style="red")

    again = {int(case): unusual.pop(case) for case in list(unusual)}  # perhaps mended since
    for case, end in run_files(sources, list(again), workers, kind):
        counts[again[case]] -= 1
        count(case, end)
    counts = +counts
    # Cases end out of order. Only whole batches are kept, so that a resumed run repeats a part of one at most.
    for first in range(done, cases, _SAVED_EVERY):
        if minutes and time.monotonic() - started > 60 * minutes:
            break
        batch = range(first, min(first + _SAVED_EVERY, cases))
        for case, end in run_files(sources, batch, workers, kind):
            count(case, end)
        done = batch.stop
        keep()
        log.print(f"{done} of {cases} in {(time.monotonic() - started) / 60:.1f} min")
    columns: list[Column[tuple[str, int]]] = [
        Column("end", lambda row: row[0], text=True),
        Column("files", lambda row: str(row[1])),
    ]
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    table = Table.of(f"{done} damaged files of {len(present)} models", columns, rows)
    settings = {"cases": done, "models": [path.name for path in present], "clock": "wall"}
    found = {"ends": dict(rows), "unusual": unusual}
    Report("fuzz", title, notes, [table], settings, found, suffix=suffix).publish(output, whole=True)


main.add_command(kills)


if __name__ == "__main__":
    main()
