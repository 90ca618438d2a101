"""Compare optimizers of graphs on trained models: ``python -m benchmarks.clean``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from onnx import ModelProto

from benchmarks.common import ROOT, Column, Report, Table, chosen, log, options
from benchmarks.turns import speedup, turns
from onnxprune.cleaning.optimizers import OPTIMIZERS, optimize
from onnxprune.errors import OnnxPruneError
from onnxprune.model.bodies import close_bodies
from onnxprune.model.checks import count_nodes
from onnxprune.model.file import load
from onnxprune.normalize import normalize
from onnxprune.report.layout import percent
from onnxprune.rewrite.comparison import compare_outputs, interface_changes
from onnxprune.rewrite.verify import default_tolerance
from onnxprune.shapes import concretize, runnable_inputs
from onnxprune.workflow.cleaning import NORMALIZED

SHARED = ROOT.parent / "shared" / "models"
MODELS = (
    *("ultraface_rfb320", "yolox_nano", "fsanet_1x1", "cifar_resnet20_ts", "mobilenetv1_025_128_f32"),
    *("squeezenet_fp16_winml", "gtcrn_simple", "silero_vad", "magika_standard_v3_3"),
)
INPUTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {"silero_vad": {"input": (1, 512), "state": (2, 1, 128)}}
_ROUNDS, _SECONDS, _LIMIT = 15, 0.05, 120.0

NOTES = (
    "Each optimizer gets the model as onnxprune normalizes it, and what it makes is compared with the file: "
    "outputs on generated inputs (*error*, relative to the largest value), inputs and outputs as declared, nodes "
    "including those of bodies, bytes, and speed on ONNX Runtime's CPU provider, measured in turns with the file. "
    "*Time* is that of the optimizer; those that onnxprune uses run in a process of their own, whose start and "
    "imports count.",
    "onnxprune takes onnxsim, which leaves the fewest nodes on most of these, and ONNX Runtime's own rewrites, which "
    "need no other package. onnxslim leaves few nodes as well, but renames symbolic sizes and needs SymPy; "
    "onnxscript's optimizer leaves a few more on most, and the fewest on silero_vad.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an optimizer made of a model.

    Attributes:
        model: the model's name.
        by: the optimizer.
        nodes: number of nodes; None if it failed.
        size: bytes.
        seconds: time of the optimizer.
        error: largest difference of outputs, relative to the largest value.
        speedup: how many times as fast as the file.
        remark: why it can't be taken, or what it changes.
    """

    model: str
    by: str
    nodes: int | None
    size: int | None
    seconds: float
    error: float
    speedup: float | None
    remark: str


def _onnxslim(model: ModelProto) -> ModelProto:
    import onnxslim

    found: ModelProto = onnxslim.slim(model)
    return found


def _onnxscript(model: ModelProto) -> ModelProto:
    from onnxscript import optimizer

    found: ModelProto = optimizer.optimize(model)
    return found


WAYS: Mapping[str, Callable[[ModelProto], ModelProto]] = {
    NORMALIZED: lambda model: model,
    **{name: partial(optimize, name=name, seconds=_LIMIT) for name in OPTIMIZERS},
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
}


def measured(name: str, threads: int) -> Iterator[Outcome]:
    """Yield the file, and what each optimizer makes of it."""
    path = next(p for p in (SHARED / f"{name}.onnx", ROOT / "models" / f"{name}.onnx") if p.is_file())
    original = load(path).proto
    base = close_bodies(normalize(original))
    feeds = runnable_inputs(base, concretize(base, INPUTS.get(name, {})).inputs, 0)
    yield Outcome(name, "file", count_nodes(original.graph), path.stat().st_size, 0.0, 0.0, 1.0, "")
    for by, way in WAYS.items():
        log.print(f"{name}: {by}", style="dim")
        copy = ModelProto()
        copy.CopyFrom(base)
        began = perf_counter()
        try:
            made = load(way(copy)).proto
            seconds = perf_counter() - began
            distances = compare_outputs(original, made, feeds)
            error = max(d.difference for d in distances)
            changes = interface_changes(original, made)
            equal = error <= default_tolerance(base) and all(d.sound for d in distances)
            times = turns({"file": original, by: made}, feeds, rounds=_ROUNDS, threads=threads, seconds=_SECONDS)
        except (OnnxPruneError, ImportError, RuntimeError, ValueError, TypeError, AttributeError) as failure:
            seconds = perf_counter() - began
            yield Outcome(name, by, None, None, seconds, float("inf"), None, str(failure).splitlines()[0][:100])
            continue
        remark = "" if equal else "outputs differ"
        remark = remark or (f"{len(changes)} inputs and outputs declared otherwise" if changes else "")
        fast = speedup(times["file"], times[by])
        yield Outcome(name, by, count_nodes(made.graph), made.ByteSize(), seconds, error, fast, remark)


def tables(found: list[Outcome]) -> list[Table]:
    """Return a table for each model."""
    files = {o.model: o for o in found if o.by == "file"}
    columns: list[Column[Outcome]] = [
        Column("by", lambda o: o.by, True),
        Column("nodes", lambda o: "" if o.nodes is None else f"{o.nodes:,}"),
        Column("bytes", lambda o: "" if o.size is None else percent(o.size / (files[o.model].size or 1))),
        Column("error", lambda o: f"{o.error:.1e}" if isfinite(o.error) else ""),
        Column("time", lambda o: "" if o.by == "file" else f"{o.seconds:.1f} s"),
        Column("speed", lambda o: "" if o.speedup is None else f"{o.speedup:.2f}x"),
        Column("remark", lambda o: o.remark, True),
    ]
    return [Table.of(name, columns, [o for o in found if o.model == name]) for name in files]


@click.command()
@options
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads within an operator.")
def main(output: Path, only: str, repeats: int, clock: str, threads: int) -> None:
    """Compare optimizers of graphs on trained models."""
    present = [n for n in MODELS if (SHARED / f"{n}.onnx").is_file()] + ["digits_resnet"]
    names = chosen(present, only)
    found = [outcome for name in names for outcome in measured(name, threads)]
    settings: dict[str, Any] = {"clock": "wall", "threads": threads}
    report = Report("clean", "Optimizers of graphs", NOTES, tables(found), settings, {"outcomes": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
