"""Time and memory of each stage: ``python -m benchmarks.tracing``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import Column, Report, Stopwatch, Table, Timing, chosen, log, milliseconds, options, yes
from benchmarks.memory import SETTINGS, peak_memory
from models.builders import densenet121, mobilenet_v2, resnet, synthetic_chain, yolo_like
from onnxprune import TracedModel, apply_plan, load, prove, prune, save
from onnxprune.cost.cost import Cost, model_cost
from onnxprune.normalize import normalize
from onnxprune.report.layout import si
from onnxprune.shapes import Shapes, concretize
from onnxprune.trace import trace

NETWORKS: Mapping[str, Callable[[], ModelProto]] = {
    "ResNet-50": resnet,
    "DenseNet-121": densenet121,
    "MobileNetV2": mobilenet_v2,
    "YOLO-like": yolo_like,
}
CHAINS: Mapping[str, int] = {f"synthetic {n:,}": n for n in (1_000, 3_000, 10_000)}
STAGES = ("load", "shapes", "trace", "plan", "rewrite", "save", "verify")

_LINEAR = 1.1  # growth exponent up to which a stage counts as linear: room for noise and caches

NOTES = (
    "Models have seeded random weights. Each time is the fastest of several runs after a warm-up run, because "
    "interference only makes runs longer. `shapes` normalizes the graph and finds the shape of every tensor, `trace` "
    "finds the channel dependencies, `plan` scores with l2 and aims at half the MACs, `verify` is the masked oracle "
    "on ONNX Runtime. `total` is everything but `verify`.",
    "Memory is the peak of resident memory while a model is loaded, pruned and saved in its own process, above what "
    "the process held before; in brackets relative to the model's file. The last column is the same with the proof.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements of one model.

    Attributes:
        model: its name.
        nodes: number of nodes, normalized.
        params: elements of its weights.
        size: bytes of its file.
        stages: the time of each stage.
        memory: peak of bytes from load to save; None where that can't be measured.
        memory_proved: the same with the proof.
    """

    model: str
    nodes: int
    params: int
    size: int
    stages: Mapping[str, Timing]
    memory: int | None
    memory_proved: int | None

    @property
    def total(self) -> float:
        """Seconds from load to save, without the proof."""
        return sum(timing.best for stage, timing in self.stages.items() if stage != "verify")


@dataclass(frozen=True, slots=True)
class Aim:
    """A goal.

    Attributes:
        what: the quantity.
        limit: its limit, as text.
        found: its value, as text.
        met: whether the value is within the limit.
    """

    what: str
    limit: str
    found: str
    met: bool


def run(name: str, model: ModelProto, *, repeats: int, clock: str) -> Result:
    """Measure one model."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save(model, path)
        cost, nodes, stages = _time_stages(path, Stopwatch(repeats, clock))
        return Result(
            name,
            nodes,
            cost.params,
            path.stat().st_size,
            stages,
            memory=peak_memory(path, check=False),
            memory_proved=peak_memory(path, check=True),
        )


def growth(results: Sequence[Result], stage: str) -> float:
    """Return the exponent p of the power law, time ~ nodes ** p, fitted to a stage."""
    nodes = [r.nodes for r in results]
    times = [r.stages[stage].best for r in results]
    return float(np.polyfit(np.log(nodes), np.log(times), 1)[0])


def aims(results: Mapping[str, Result]) -> Iterator[Aim]:
    """Compare results with the goals."""
    for name, result in results.items():
        limit = 1.0 if name == "synthetic 10,000" else 0.05 if name in NETWORKS else None
        if limit is not None:
            found = result.stages["trace"].best
            yield Aim(f"trace of {name}", f"< {limit * 1e3:g} ms", f"{milliseconds(found)} ms", found < limit)
    chains = [results[name] for name in CHAINS if name in results]
    if len(chains) == len(CHAINS):
        found = growth(chains, "trace")
        yield Aim("trace grows with nodes to the power of", f"<= {_LINEAR}", f"{found:.2f}", found <= _LINEAR)
    if resnet50 := results.get("ResNet-50"):
        yield Aim("ResNet-50, load to save", "< 2 s", f"{resnet50.total:.2f} s", resnet50.total < 2)
        if resnet50.memory is not None:
            times = resnet50.memory / resnet50.size
            yield Aim("ResNet-50, peak memory", "< 3 x the model", f"{times:.2f} x", times < 3)


def _time_stages(path: Path, watch: Stopwatch) -> tuple[Cost, int, dict[str, Timing]]:
    model = watch("load", lambda: load(path))
    proto, shapes = watch("shapes", lambda: _shapes(model.proto))
    graph = watch("trace", lambda: trace(proto, shapes=shapes))
    analysis = TracedModel(model, graph)
    plan = watch("plan", lambda: op.plan(analysis, SETTINGS))
    pruned = watch("rewrite", lambda: prune(analysis, plan, check=False).proto)
    watch("save", lambda: save(pruned, path.with_name("pruned.onnx"), force=True))
    verdict = watch("verify", lambda: prove(apply_plan(graph, plan), pruned))
    assert verdict.passed, f"{path.stem}: relative error {verdict.error}"
    return model_cost(proto, shapes), len(proto.graph.node), watch.times


def _shapes(source: ModelProto) -> tuple[ModelProto, Shapes]:
    proto = normalize(source)
    return proto, concretize(proto)


def _stage(name: str) -> Column[Result]:
    return Column(name, lambda r: milliseconds(r.stages[name].best))


def _memory(header: str, peak: Callable[[Result], int | None]) -> Column[Result]:
    def cell(result: Result) -> str:
        found = peak(result)
        return "-" if found is None else f"{si(found, 'B')} ({found / result.size:.1f}x)"

    return Column(header, cell)


TIMES: Sequence[Column[Result]] = (
    Column("model", lambda r: r.model, text=True),
    Column("nodes", lambda r: f"{r.nodes:,}"),
    Column("params", lambda r: si(r.params)),
    *map(_stage, STAGES[:-1]),
    Column("total", lambda r: milliseconds(r.total)),
    _stage("verify"),
    Column("file", lambda r: si(r.size, "B")),
    _memory("peak memory", lambda r: r.memory),
    _memory("with proof", lambda r: r.memory_proved),
)
AIMS: Sequence[Column[Aim]] = (
    Column("aim", lambda a: a.what, text=True),
    Column("limit", lambda a: a.limit),
    Column("found", lambda a: a.found),
    Column("met", lambda a: yes(a.met), text=True),
)


def _growth_table(results: Sequence[Result]) -> Table:
    columns: list[Column[str]] = [Column("stage", lambda s: s, text=True)]
    for result in results:

        def cell(stage: str, result: Result = result) -> str:
            return milliseconds(result.stages[stage].best / result.nodes * 1000)

        columns.append(Column(f"{result.nodes:,} nodes", cell))
    columns.append(Column("exponent", lambda s: f"{growth(results, s):.2f}"))
    return Table.of("Milliseconds per 1,000 nodes, and how time grows", columns, STAGES)


@click.command(help=__doc__)
@options
def main(repeats: int, clock: str, only: str, output: Path) -> None:
    """Measure, print and write."""
    builders: dict[str, Callable[[], ModelProto]] = dict(NETWORKS)
    builders |= {name: partial(synthetic_chain, nodes) for name, nodes in CHAINS.items()}
    results: dict[str, Result] = {}
    for name in chosen(list(builders), only):
        log.print(f"measuring {name}", style="dim")
        results[name] = run(name, builders[name](), repeats=repeats, clock=clock)
    tables = [Table.of("Milliseconds per stage, and memory", TIMES, list(results.values()))]
    chains = [results[name] for name in CHAINS if name in results]
    if len(chains) == len(CHAINS):
        tables.append(_growth_table(chains))
    goals = list(aims(results))
    tables.append(Table.of("Aims", AIMS, goals))
    Report(
        name="tracing",
        title="Time and memory, stage by stage",
        notes=NOTES,
        tables=tables,
        settings={"repeats": repeats, "clock": clock, "plan": SETTINGS},
        results={"models": list(results.values()), "aims": goals},
    ).publish(output, whole=len(results) == len(builders))


if __name__ == "__main__":
    main()
