"""A decoder of a billion parameters, pruned to 75 %: ``python -m benchmarks.decoder``.

Its weights are random, in external data, and are deleted afterwards. Each measurement runs in its own process and
resets the kernel's peak memory counter, so this needs Linux.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click

import onnxprune as op
from benchmarks.common import DOCS, ROOT, Column, Report, Table, log, yes
from benchmarks.memory import forget_peak, held, peak
from models.builders.decoder import Decoder, write_decoder
from onnxprune import PlanSettings, Target, prune, save
from onnxprune.model.file import load, outline
from onnxprune.normalize import normalize
from onnxprune.report.layout import percent, share, si
from onnxprune.trace import trace
from onnxprune.workflow.analysis import TracedModel

SETTINGS = PlanSettings(target=Target("params", 0.75))
SECONDS, TIMES_ITS_SIZE = 10.0, 2.0

NOTES = (
    "Memory is the peak of what the process holds above what it held with all modules imported, from loading the model "
    "to writing the pruned one. Trace is the time to find shapes and dependencies once the model is loaded.",
    "The proof runs the original, masked and pruned models on ONNX Runtime, which keeps weights of its own.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements of pruning the decoder in one way.

    Attributes:
        way: with or without the proof.
        params: of the original.
        left: share of the parameters that is left.
        size: bytes of the original's files.
        times: seconds of each stage.
        memory: peak of bytes held.
    """

    way: str
    params: int
    left: float
    size: int
    times: dict[str, float]
    memory: int


def _stage(name: str) -> Column[Result]:
    return Column(f"{name}, s", lambda r: f"{r.times[name]:.1f}")


COLUMNS: Sequence[Column[Result]] = (
    Column("", lambda r: r.way, text=True),
    Column("params", lambda r: si(r.params)),
    Column("left", lambda r: percent(r.left)),
    *map(_stage, ("load", "trace", "plan", "prune", "save")),
    Column("size", lambda r: si(r.size, "B")),
    Column("peak memory", lambda r: f"{si(r.memory, 'B')} ({r.memory / r.size:.2f}x)"),
)


def measure(source: Path, target: Path, *, check: bool) -> Result:
    """Prune a model from file to file, in this process."""
    gc.collect()
    forget_peak()
    before, times, start = held(), dict[str, float](), perf_counter()

    def lap(stage: str) -> None:
        nonlocal start
        times[stage], start = perf_counter() - start, perf_counter()

    model = load(source)
    lap("load")
    known, proto = outline(model), normalize(model.proto, consume=True)
    del model
    analysis = TracedModel(known, trace(proto))
    lap("trace")
    plan = op.plan(analysis, SETTINGS)
    lap("plan")
    pruned = prune(analysis, plan, check=check)
    lap("prune")
    save(pruned.proto, target, external=True)
    lap("save")
    size = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))
    left = share(plan.after["params"], plan.before["params"])
    return Result("with proof" if check else "as it is", plan.before["params"], left, size, times, peak() - before)


def in_a_process(source: Path, *, check: bool) -> Result:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--child", str(source)]
    found = subprocess.run([*command, *["--check"] * check], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(found.stdout))


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option(
    "--layers", type=click.IntRange(1), default=Decoder().layers, show_default=True, help="Fewer write nothing."
)
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
@click.option("--check", is_flag=True, hidden=True)
def main(output: Path, layers: int, child: Path | None, check: bool) -> None:
    """Measure, print and write."""
    with TemporaryDirectory() as folder:
        if child is not None:
            small = Path(folder, "small.onnx")
            write_decoder(small, Decoder(layers=1, width=64, heads=4, shared=2, inner=64, words=64))
            measure(small, Path(folder, "import.onnx"), check=check)  # so that all modules are imported
            result = measure(child, Path(folder, "pruned.onnx"), check=check)
            click.echo(json.dumps({name: getattr(result, name) for name in Result.__slots__}))
            return
        source = Path(folder, "decoder.onnx")
        log.print("writing the decoder", style="dim")
        write_decoder(source, Decoder(layers=layers))
        results = []
        for proved in (False, True):
            log.print("pruning it" + " with proof" * proved, style="dim")
            results.append(in_a_process(source, check=proved))
    first = results[0]
    aims = [
        ("trace", f"below {SECONDS:.0f} s", f"{first.times['trace']:.1f} s", first.times["trace"] < SECONDS),
        (
            "memory",
            f"below {TIMES_ITS_SIZE:.0f}x",
            f"{first.memory / first.size:.2f}x",
            first.memory < TIMES_ITS_SIZE * first.size,
        ),
    ]
    Report(
        name="decoder",
        title="A decoder of a billion parameters",
        notes=NOTES,
        tables=[
            Table.of("Pruned to 75 % of its parameters", COLUMNS, results),
            Table(
                "Aims",
                ("aim", "limit", "found", "met"),
                (True, False, False, True),
                tuple((a, b, c, yes(d)) for a, b, c, d in aims),
            ),
        ],
        settings={"layers": layers, "clock": "wall", "plan": SETTINGS},
        results={"ways": results},
    ).publish(output, whole=layers == Decoder().layers)


if __name__ == "__main__":
    main()
