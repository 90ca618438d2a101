"""Other execution providers: how much pruning saves there, and whether their plans differ from the CPU's.

``python -m benchmarks.providers cuda``, in an environment whose ONNX Runtime has the provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import ModelProto

from benchmarks.common import ROOT, Column, Report, Table, chosen, log, milliseconds, options
from benchmarks.turns import turns
from models.fill import fill
from onnxprune import Target, TracedModel, analyze
from onnxprune.benchmarking import Provider, benchmark, parse_provider
from onnxprune.benchmarking.rounds import ratio
from onnxprune.errors import PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.importance import score
from onnxprune.latency import LatencyResult, Options, plan_for_latency
from onnxprune.model.file import load
from onnxprune.planning.budget import choose
from onnxprune.report.layout import percent
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.provider import CPU
from onnxprune.settings.benchmarking import BenchmarkSettings
from onnxprune.settings.planning import Constraints
from onnxprune.shapes import generate_inputs
from onnxprune.trace.pruned_graph import PrunedGraph

SHARE = 0.5
_FOLDER = ROOT.parent / "shared" / "models" / "architectures"
_NETWORKS = ("resnet50_ts", "mobilenetv2_ts", "densenet121_ts", "efficientnet_b0_dynamo", "vit_small_ts")
_ROUNDS, _SECONDS = 15, 0.5

NOTES = (
    "Networks with random weights, dense and pruned uniformly to half their MACs, on {provider}: with float32 and "
    "with float16 weights, at several batch sizes. *Speed-up* is that of pruning, with its 95 % interval.",
    "Then `--target latency=0.5` for {provider} and for ONNX Runtime's CPU provider: the share of the original's time "
    "that each plan takes on each of the two, measured once both plans were made. *Shared* is the share of the units "
    "removed by either plan that both remove.",
)


@dataclass(frozen=True, slots=True)
class Timing:
    """A network at one type and batch size: seconds dense and pruned, and the speed-up."""

    network: str
    weights: str
    batch: int
    dense: float
    pruned: float
    speedup: Estimate


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans for half the latency on the provider and on the CPU, each measured on both; None if out of reach.

    Attributes:
        network: its name.
        there: share of the time on the provider, with its own plan and with the plan for the CPU.
        here: the same on the CPU.
        shared: share of all removed units that both plans remove.
    """

    network: str
    there: tuple[float | None, float | None]
    here: tuple[float | None, float | None]
    shared: float | None


def timings(name: str, analysis: TracedModel, provider: Provider, batches: Sequence[int], threads: int) -> list[Timing]:
    """Time a network dense and pruned, with weights of both types."""
    graph = analysis.graph
    removed = choose(graph, score(graph, "l2"), Constraints(), target=Target("macs", SHARE))
    pair = {"dense": graph.proto, "pruned": rewrite(PrunedGraph(graph, removed))}
    first = graph.proto.graph.input[0].type.tensor_type.shape.dim[0]
    sizes: tuple[int | None, ...] = tuple(batches) if first.dim_param else (None,)  # exported for one size
    found = []
    for weights, models in (("float32", pair), ("float16", {k: _halved(proto) for k, proto in pair.items()})):
        log.print(f"{name}: {weights}", style="dim")
        settings = BenchmarkSettings(providers=(provider,), batches=sizes, threads=threads, seconds=_SECONDS)
        for case in benchmark({k: load(proto) for k, proto in models.items()}, settings).cases:
            dense, pruned = case.results
            assert pruned.speedup is not None
            times = dense.latency.median, pruned.latency.median
            found.append(Timing(name, weights, case.batch, *times, pruned.speedup))
    return found


def plans(name: str, analysis: TracedModel, provider: Provider, threads: int) -> Plans:
    """Plan for half the latency on the provider and on the CPU, and measure each plan on both."""
    graph = analysis.graph
    inputs = generate_inputs(graph.proto, graph.shapes.inputs)
    places = provider, Provider(CPU)
    made: list[LatencyResult | None] = []
    for place in places:
        log.print(f"{name}: plan for {place.short}", style="dim")
        try:
            where = Options(place, threads=threads)
            made.append(plan_for_latency(graph, score(graph, "l2"), Constraints(), Target("latency", SHARE), where))
        except PlanError as error:
            log.print(f"{name}: {error.cause}; {error.hint}")
            made.append(None)
    networks = {str(i): rewrite(PrunedGraph(graph, f.removed)) for i, f in enumerate(made) if f is not None}
    shares: list[tuple[float | None, float | None]] = []
    for place in places:
        models = {"dense": graph.proto, **networks}
        runs = turns(models, inputs, rounds=_ROUNDS, threads=threads, seconds=_SECONDS, provider=place)
        own = {key: ratio(runs[key], runs["dense"]).value for key in networks}
        shares.append((own.get("0"), own.get("1")))
    shared = None
    if made[0] is not None and made[1] is not None:
        first, second = made[0].removed, made[1].removed
        shared = float(np.sum(first & second) / np.sum(first | second))
    return Plans(name, shares[0], shares[1], shared)


def _halved(proto: ModelProto) -> ModelProto:
    """Return a model with float16 weights and unchanged inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(proto)
    halved: ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return halved


def _share(value: float | None) -> str:
    return "out of reach" if value is None else percent(value)


TIMINGS: Sequence[Column[Timing]] = (
    Column("network", lambda t: t.network, text=True),
    Column("weights", lambda t: t.weights, text=True),
    Column("batch", lambda t: str(t.batch)),
    Column("dense, ms", lambda t: milliseconds(t.dense)),
    Column("pruned, ms", lambda t: milliseconds(t.pruned)),
    Column("speed-up", lambda t: f"{t.speedup.value:.2f}x ({t.speedup.low:.2f} to {t.speedup.high:.2f})"),
)


def _plan_columns(provider: str) -> Sequence[Column[Plans]]:
    return (
        Column("network", lambda p: p.network, text=True),
        Column(f"plan for {provider}, on {provider}", lambda p: _share(p.there[0])),
        Column("on cpu", lambda p: _share(p.here[0])),
        Column("plan for cpu, on cpu", lambda p: _share(p.here[1])),
        Column(f"on {provider}", lambda p: _share(p.there[1])),
        Column("shared", lambda p: "-" if p.shared is None else percent(p.shared)),
    )


@click.command(help=__doc__)
@click.argument("provider")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 64), show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads within an operator.")
@options
def main(
    provider: str, batches: tuple[int, ...], threads: int, repeats: int, clock: str, only: str, output: Path
) -> None:
    """Measure, print and write."""
    place = parse_provider(provider)
    names = chosen(_NETWORKS, only)
    timed, planned = list[Timing](), list[Plans]()
    for name in names:
        analysis = analyze(fill(onnx.load(_FOLDER / f"{name}.onnx")))
        timed += timings(name, analysis, place, batches, threads)
        planned.append(plans(name, analysis, place, threads))
    Report(
        name="providers",
        title=f"Pruned for {place.short}",
        notes=[note.format(provider=place.short) for note in NOTES],
        tables=[
            Table.of("at half the MACs", TIMINGS, timed),
            Table.of("at half the latency", _plan_columns(place.short), planned),
        ],
        settings={"clock": "wall", "provider": place.name, "threads": threads, "batches": batches},
        results={"timings": timed, "plans": planned},
        suffix=f"_{place.short}",
    ).publish(output, whole=len(names) == len(_NETWORKS))


if __name__ == "__main__":
    main()
